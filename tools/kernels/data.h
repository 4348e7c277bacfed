// What the kernels are measured on: a base and fine-tunes as checkpoints hold them, their task vectors, and
// keys that repeat.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "ops/dtype.h"

namespace braid::bench {

inline constexpr size_t kMostModels = 8;
// Elements of a pattern, which repeats in longer operands: more than branch predictors learn.
inline constexpr size_t kPattern = size_t{1} << 20;

enum class What {
  kBase,     // weights of N(0, 0.02)
  kModel,    // the base plus N(0, 0.0005)
  kDelta,    // model minus base, as float32 lanes
  kOneBin,   // lanes that share their keys' high half, with any low half
  kEqual,    // one lane over and over
  kZeros,
};

struct Source {
  What what;
  DType type = DType::kF32;
  size_t model = 0;   // of kModel and kDelta
};

// Where entries of a task vector are trimmed: min_key at density 0.21 and sure_key at 0.19, around 0.2.
struct Threshold {
  uint32_t min_key, key, sure_key;
};
Threshold ThresholdOf(size_t model, DType type);

// The key of every lane of kEqual; its high half is that of kOneBin.
inline constexpr uint32_t kEqualKey = 0x3b123456;

// A source laid out n elements long, with padding (ops/kernels.h). Operands made one after another do not
// begin at the same place within a page.
class Operand {
 public:
  Operand(const Source& source, size_t n);
  explicit Operand(size_t bytes);   // to be written to
  std::byte* data() const { return begin_; }

 private:
  std::unique_ptr<std::byte[]> memory_;
  std::byte* begin_;
};

}  // namespace braid::bench
