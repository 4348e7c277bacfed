#include "ops/elementwise_merger.h"

namespace braid {
namespace {

class ElementwiseMerger : public Merger {
 public:
  ElementwiseMerger(const MethodInfo& method, ElementwiseFunction function)
      : lambda_(method.At("lambda")), function_(function) {}

  size_t statistics_rounds() const override { return 0; }
  RoundSpec round(size_t) const override { return {.name = "merge"}; }
  bool Reads(size_t, size_t, const Coefficients&) const override { return true; }

  void Merge(const Coefficients& c, const LaneTile& tile, const uint64_t*, Scratch& scratch, DType type,
             std::byte* out, MergeCounts* counts) const override {
    MergeDeltaBlocks(tile, static_cast<float>(c.shared[lambda_]), scratch, type, out, counts,
                     [&](const DeltaBlock& block) { function_(c, block); });
  }

 private:
  size_t lambda_;   // index of the parameter
  ElementwiseFunction function_;
};

}  // namespace

std::unique_ptr<Merger> NewElementwiseMerger(const MethodInfo& method, ElementwiseFunction function) {
  return std::make_unique<ElementwiseMerger>(method, function);
}

}  // namespace braid
