// The safetensors format: 8 bytes of header length, a JSON header, then the tensors back to back.
//
// Reading validates everything before anything is allocated or mapped from a declared size; whatever passes
// can be trusted by the code downstream: ranges lie in the file, in order, without holes or overlap, and each
// range has exactly the bytes that shape and type need. Reference: github.com/huggingface/safetensors
// (safetensors/src/tensor.rs); where we are stricter, the list in tests/io/safetensors_test.cc says so.
#pragma once

#include <xxhash.h>

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "ops/dtype.h"

namespace braid {

class InputStream;

struct TensorInfo {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<uint64_t> shape;  // row-major; empty for a scalar
  uint64_t elements = 0;        // product of the shape
  uint64_t offset = 0;          // of the first byte, from the start of the file
  uint64_t bytes = 0;
};

std::string ShapeText(const std::vector<uint64_t>& shape);  // "[4096, 1024]"

struct SafetensorsHeader {
  uint64_t data_offset = 0;                     // 8 + header length
  uint64_t file_bytes = 0;                      // where the last tensor ends
  XXH128_hash_t sum{};                          // XXH3 of its text
  std::vector<TensorInfo> tensors;              // by offset, as they lie in the file
  std::map<std::string, std::string> metadata;  // __metadata__
  std::vector<std::string> warnings;            // accepted, but worth telling (trailing newline, extra keys)
};

inline constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the reference reader's limit

// Of a stream, whose end shows only when it comes: more than any file, so little that sums of it do not overflow.
inline constexpr uint64_t kMaxStreamBytes = uint64_t{1} << 50;

// Parses the JSON of a header; `file_bytes` is the size of the whole file, nothing that of a stream. Throws
// Error(kBadInput).
SafetensorsHeader ParseSafetensorsHeader(std::string_view json, std::optional<uint64_t> file_bytes,
                                         const std::string& path);

// Reads and parses the header of an open file of `file_bytes` bytes. Throws Error.
SafetensorsHeader ReadSafetensorsHeader(int fd, uint64_t file_bytes, const std::string& path);

// The same of a stream from its beginning, which is read no further; `bytes` gets all that was read. Throws Error.
SafetensorsHeader ReadSafetensorsHeader(InputStream* stream, std::string* bytes);

// The first bytes of a file that holds `tensors` back to back in this order (their `bytes` are used, their
// `offset` is ignored): length, JSON with __metadata__ first, padded with spaces so that the data begins at a
// multiple of `alignment`.
std::string MakeSafetensorsHeader(const std::vector<TensorInfo>& tensors,
                                  const std::map<std::string, std::string>& metadata,
                                  uint64_t alignment = 64);

}  // namespace braid
