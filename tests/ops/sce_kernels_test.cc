// The loops of sce on every target.
#include "ops/sce_kernels.h"

#include <algorithm>

#include "ops/merger.h"
#include "tests/ops/test_support.h"

namespace braid {
namespace {

using test::Kind;
using test::Padded;
using test::Random;
using test::RandomLanes;
using test::SameLane;

struct Models {
  std::vector<std::vector<float>> lanes;   // padded
  std::vector<const float*> data;
};

Models RandomModels(Random& random, size_t n, Kind kind) {
  Models models;
  for (size_t m = random.Below(5); m > 0; --m) models.lanes.push_back(Padded(random, RandomLanes(random, n, kind)));
  for (const auto& lanes : models.lanes) models.data.push_back(lanes.data());
  return models;
}

template <typename Body>
void ForEachCase(Random& random, Body body) {
  test::ForEachTarget([&] {
    for (Kind kind : test::kAllKinds)
      for (size_t n : test::Lengths()) body(n, RandomModels(random, n, kind));
  });
}

TEST(SceKernels, Variances) {
  Random random;
  ForEachCase(random, [&](size_t n, const Models& models) {
    std::vector<float> variances(n + kLanePadding);
    Variances(models.data.data(), models.data.size(), n, variances.data());
    const double count = std::max<double>(1, static_cast<double>(models.data.size()));
    for (size_t i = 0; i < n; ++i) {
      double mean = 0, sum = 0;
      for (const auto& d : models.lanes) mean += static_cast<double>(d[i]);
      mean /= count;
      for (const auto& d : models.lanes) sum += (static_cast<double>(d[i]) - mean) * (static_cast<double>(d[i]) - mean);
      ASSERT_TRUE(SameLane(variances[i], static_cast<float>(sum / count))) << i << " of " << n;
    }
  });
}

TEST(SceKernels, KeepVariances) {
  Random random;
  ForEachCase(random, [&](size_t n, const Models& models) {
    if (models.lanes.size() < 2) return;
    const std::vector<float>&variances = models.lanes[0], &before = models.lanes[1];
    const auto key = [](float x) { return std::isnan(x) ? kNanKey : test::ToBits(x) & 0x7fffffff; };
    const uint32_t least = n > 0 && random.Chance(0.6) ? key(variances[random.Below(n)])
        : random.OneOf<uint32_t>({0, 1, kNanKey, kNanKey + 1});
    std::vector<float> d = before;
    KeepVariances(variances.data(), least, n, d.data());
    for (size_t i = 0; i < d.size(); ++i)
      ASSERT_TRUE(SameLane(d[i], i >= n || key(variances[i]) >= least ? before[i] : 0.0f)) << i << " of " << n;
  });
}

TEST(SceKernels, AddSquares) {
  Random random;
  ForEachCase(random, [&](size_t n, const Models& models) {
    if (models.lanes.empty()) return;
    double sums[kSumLanes], expected[kSumLanes];
    for (size_t j = 0; j < kSumLanes; ++j) sums[j] = expected[j] = std::fabs(random.Normal());
    for (size_t i = 0; i < n; ++i)
      expected[i % kSumLanes] += static_cast<double>(models.lanes[0][i]) * static_cast<double>(models.lanes[0][i]);
    AddSquares(models.data[0], n, sums);
    for (size_t j = 0; j < kSumLanes; ++j)
      ASSERT_TRUE(test::SameSum(sums[j], expected[j])) << j << ", " << n << " lanes";
  });
}

TEST(SceKernels, MergeAgreeing) {
  Random random;
  ForEachCase(random, [&](size_t n, const Models& models) {
    std::vector<float> merged(n + kLanePadding), weights;
    for (size_t m = 0; m < models.lanes.size(); ++m) weights.push_back(random.OneOf({0.5f, 1.0f, 1e-9f, 0.0f}));
    uint64_t conflicts = 0;
    for (size_t i = 0; i < n; ++i) {
      float total = 0, sum = 0, divisor = 0;
      bool conflict = false;
      for (const auto& d : models.lanes) total += d[i];
      for (size_t m = 0; m < models.lanes.size(); ++m) {
        const float d = models.lanes[m][i];
        const bool agrees = total >= 0 ? d > 0 : d < 0;
        conflict |= total >= 0 ? d < 0 : d > 0;
        if (agrees) sum += d * weights[m], divisor += weights[m];
      }
      conflicts += conflict;
      merged[i] = sum / std::max(divisor, 1e-6f);
    }
    std::vector<float> out(n + kLanePadding);
    EXPECT_EQ(MergeAgreeing(models.data.data(), weights.data(), models.lanes.size(), n, out.data()), conflicts);
    for (size_t i = 0; i < n; ++i) ASSERT_TRUE(SameLane(out[i], merged[i])) << i << " of " << n;
  });
}

}  // namespace
}  // namespace braid
