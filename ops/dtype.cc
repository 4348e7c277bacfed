#include "ops/dtype.h"

#include <array>

namespace braid {
namespace {

struct Row {
  DType type;
  std::string_view name;
  int bits;
};

constexpr std::array<Row, 22> kTable{{
    {DType::kBool, "BOOL", 8},          {DType::kF4, "F4", 4},
    {DType::kF6E2M3, "F6_E2M3", 6},     {DType::kF6E3M2, "F6_E3M2", 6},
    {DType::kU8, "U8", 8},              {DType::kI8, "I8", 8},
    {DType::kF8E5M2, "F8_E5M2", 8},     {DType::kF8E4M3, "F8_E4M3", 8},
    {DType::kF8E8M0, "F8_E8M0", 8},     {DType::kF8E4M3Fnuz, "F8_E4M3FNUZ", 8},
    {DType::kF8E5M2Fnuz, "F8_E5M2FNUZ", 8}, {DType::kI16, "I16", 16},
    {DType::kU16, "U16", 16},           {DType::kF16, "F16", 16},
    {DType::kBF16, "BF16", 16},         {DType::kI32, "I32", 32},
    {DType::kU32, "U32", 32},           {DType::kF32, "F32", 32},
    {DType::kC64, "C64", 64},           {DType::kF64, "F64", 64},
    {DType::kI64, "I64", 64},           {DType::kU64, "U64", 64},
}};

const Row& RowOf(DType type) { return kTable[static_cast<size_t>(type)]; }

}  // namespace

std::string_view DTypeName(DType type) { return RowOf(type).name; }
int DTypeBits(DType type) { return RowOf(type).bits; }
int LaneBytes(DType type) { return DTypeBits(type) / 8; }

std::optional<DType> ParseDType(std::string_view name) {
  for (const Row& row : kTable)
    if (row.name == name) return row.type;
  return std::nullopt;
}

bool IsLaneType(DType type) {
  return type == DType::kF64 || type == DType::kF32 || type == DType::kF16 || type == DType::kBF16;
}

bool IsQuantisedType(DType type) {
  switch (type) {
    case DType::kF4: case DType::kF6E2M3: case DType::kF6E3M2: case DType::kF8E5M2: case DType::kF8E4M3:
    case DType::kF8E8M0: case DType::kF8E4M3Fnuz: case DType::kF8E5M2Fnuz: return true;
    default: return false;
  }
}

DType PromoteLaneTypes(DType a, DType b) {
  if (a == b) return a;
  if (a == DType::kF64 || b == DType::kF64) return DType::kF64;
  return DType::kF32;  // either one is F32, or they are F16 and BF16, which only F32 holds both of
}

std::string_view TorchName(DType lane_type) {
  switch (lane_type) {
    case DType::kF64: return "float64";
    case DType::kF16: return "float16";
    case DType::kBF16: return "bfloat16";
    default: return "float32";
  }
}

std::optional<DType> ParseTorchLaneType(std::string_view name) {
  if (name.starts_with("torch.")) name.remove_prefix(6);
  for (DType type : {DType::kF64, DType::kF32, DType::kF16, DType::kBF16})
    if (TorchName(type) == name) return type;
  return std::nullopt;
}

}  // namespace braid
