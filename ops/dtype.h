// Element types: the vocabulary that io and ops share.
//
// The names are those of the safetensors format ("BF16", "F8_E4M3", ...). Only four of them are lane types:
// types whose elements Braid decodes to float32 lanes, merges, and rounds back once. The others are copied
// byte for byte or refused. Everything here is a pure function of its arguments.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace braid {

// In the order of the safetensors specification (increasing alignment).
enum class DType : uint8_t {
  kBool, kF4, kF6E2M3, kF6E3M2, kU8, kI8, kF8E5M2, kF8E4M3, kF8E8M0, kF8E4M3Fnuz, kF8E5M2Fnuz,
  kI16, kU16, kF16, kBF16, kI32, kU32, kF32, kC64, kF64, kI64, kU64,
};

// "BF16", as safetensors spells it.
std::string_view DTypeName(DType type);
std::optional<DType> ParseDType(std::string_view safetensors_name);

// Bits of one element: 4 and 6 for the packed types, otherwise a multiple of 8.
int DTypeBits(DType type);

// F64, F32, F16, BF16: what can be merged.
bool IsLaneType(DType type);

// Bytes of one element of a lane type.
int LaneBytes(DType type);

// F4, F6, F8 and their scales: their values mean nothing without scales that live in other tensors.
bool IsQuantisedType(DType type);

// torch.promote_types for lane types: bf16 with f16 gives f32.
DType PromoteLaneTypes(DType a, DType b);

// "bfloat16" for BF16, as recipes and config.json spell lane types.
std::string_view TorchName(DType lane_type);

// Accepts "bfloat16" and "torch.bfloat16"; nothing for a type that is no lane type.
std::optional<DType> ParseTorchLaneType(std::string_view name);

}  // namespace braid
