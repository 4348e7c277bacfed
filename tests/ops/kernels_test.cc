// Every kernel, on every SIMD target, against plain loops: same bits over all remainders and special lanes,
// and whatever lies in the padding.
#include "ops/kernels.h"

#include "tests/ops/reference.h"
#include "tests/ops/test_support.h"

namespace braid {
namespace {

using test::ForEachTarget;
using test::Kind;
using test::Padded;
using test::Random;
using test::RandomLanes;
using test::SameLane;
using test::SameSum;

TEST(Kernels, DecodeTaskVector) {
  Random random;
  ForEachTarget([&] {
    for (size_t n : test::Lengths()) {
      for (Kind kind : test::kAllKinds) {
        const std::vector<float> x = Padded(random, RandomLanes(random, n, kind));
        const std::vector<float> base = Padded(random, RandomLanes(random, n, kind));
        for (DType type : {DType::kF64, DType::kF32, DType::kF16, DType::kBF16}) {
          std::vector<std::byte> bytes(n * static_cast<size_t>(LaneBytes(type)) + 1);
          NonFinite counts;
          EncodeLanes(type, x.data(), n, bytes.data() + 1, &counts);
          std::vector<float> rounded(n + kLanePadding), d(n + kLanePadding, 7.0f);
          DecodeLanes(type, bytes.data() + 1, n, rounded.data());
          DecodeTaskVector(type, bytes.data() + 1, base.data(), n, d.data());
          for (size_t i = 0; i < n; ++i) ASSERT_TRUE(SameLane(d[i], rounded[i] - base[i])) << n << " " << i;
          for (size_t i = n; i < d.size(); ++i) ASSERT_EQ(d[i], 0.0f);
        }
      }
    }
  });
}

TEST(Kernels, CollectKeys) {
  Random random;
  ForEachTarget([&] {
    for (size_t n : test::Lengths()) {
      const std::vector<float> d = Padded(random, RandomLanes(random, n, test::kAllKinds[n % 4]));
      const std::vector<float> zeros(n + kLanePadding);
      std::vector<uint32_t> all(n), keys(n), indices(n);
      StoreKeys(d.data(), n, all.data());
      for (size_t i = 0; i < n; ++i) ASSERT_EQ(all[i], reference::Key(d[i]));
      const auto any = [&] { return n == 0 ? 0u : all[random.Below(n)]; };
      for (auto [low, high] : {std::pair{0u, kNanKey}, std::pair{any(), any()}, std::pair{any(), any()}, std::pair{0u, 0u}}) {
        if (low > high) std::swap(low, high);
        uint64_t above = 5, expected_above = 5;
        const size_t count = CollectKeys(DType::kF32, d.data(), zeros.data(), n, low, high, 1000, keys.data(), indices.data(), &above);
        size_t expected = 0;
        for (size_t i = 0; i < n; ++i) {
          expected_above += all[i] > high;
          if (all[i] < low || all[i] > high) continue;
          ASSERT_LT(expected, count);
          ASSERT_EQ(keys[expected], all[i]);
          ASSERT_EQ(indices[expected++], 1000 + i);
        }
        ASSERT_EQ(count, expected);
        ASSERT_EQ(above, expected_above);
      }
    }
  });
}

TEST(Kernels, KeysOrderAsMagnitudes) {
  static_assert(kNanKey == 0x7f800001);
  Random random;
  std::vector<uint32_t> high(kHighBins), low(kLowBins);
  ForEachTarget([&] {
    for (size_t n : test::Lengths()) {
      const std::vector<float> d = Padded(random, RandomLanes(random, n, test::kAllKinds[n % 4]));
      std::vector<uint32_t> keys(n);
      for (size_t i = 0; i < n; ++i) keys[i] = reference::Key(d[i]);
      // Counts are added to what is there: start from 3.
      std::fill(high.begin(), high.end(), 3);
      CountHighHalves(d.data(), n, high.data());
      for (uint32_t key : keys) --high[key >> 16];
      ASSERT_EQ(std::count(high.begin(), high.end(), 3u), static_cast<ptrdiff_t>(kHighBins)) << n;
      const uint32_t probe = n == 0 ? 0 : keys[random.Below(n)];
      for (uint32_t wanted : {probe >> 16, 0u, 0x7f80u}) {
        std::fill(low.begin(), low.end(), 3);
        CountLowHalves(d.data(), n, wanted, low.data());
        for (uint32_t key : keys)
          if (key >> 16 == wanted) --low[key & 0xffff];
        ASSERT_EQ(std::count(low.begin(), low.end(), 3u), static_cast<ptrdiff_t>(kLowBins)) << n;
      }
      for (uint32_t key : {probe, 0u, kNanKey, 0x7f800000u}) {
        ASSERT_EQ(CountKey(d.data(), n, key),
                  static_cast<uint64_t>(std::count(keys.begin(), keys.end(), key)));
      }
    }
  });
}

TEST(Kernels, AddMagnitudes) {
  Random random;
  ForEachTarget([&] {
    for (size_t n : test::Lengths()) {
      for (Kind kind : test::kAllKinds) {
        const std::vector<float> d = Padded(random, RandomLanes(random, n, kind));
        const int32_t probe = n == 0 ? 0 : static_cast<int32_t>(reference::Key(d[random.Below(n)]) >> 16);
        for (int32_t high : {-1, 0, probe, 0x7f7f, 0x7fff}) {
          double sums[kSumLanes], expected[kSumLanes];
          for (size_t j = 0; j < kSumLanes; ++j) sums[j] = expected[j] = random.Normal();
          for (size_t i = 0; i < n; ++i) {
            const auto magnitude_high = static_cast<int32_t>((test::ToBits(d[i]) & 0x7fffffff) >> 16);
            if (magnitude_high > high) expected[i % kSumLanes] += std::fabs(static_cast<double>(d[i]));
          }
          AddMagnitudes(d.data(), n, high, sums);
          for (size_t j = 0; j < kSumLanes; ++j) ASSERT_TRUE(SameSum(sums[j], expected[j])) << n << " " << j;
        }
      }
    }
  });
}

// One random block of merging, with its own lanes, weights and options.
struct Case {
  size_t n, num_models;
  std::vector<float> base;
  std::vector<std::vector<float>> models;
  std::vector<const void*> pointers;
  std::vector<float> weights, factors;
  std::vector<uint32_t> min_keys;
  TaskVectorBlock block;

  Case(Random& random, size_t length, Kind kind) : n(length), num_models(random.Below(8)) {
    base = Padded(random, RandomLanes(random, n, random.Chance(0.3) ? Kind::kCoarse : kind));
    for (size_t m = 0; m < num_models; ++m) {
      models.push_back(Padded(random, RandomLanes(random, n, kind)));
      weights.push_back(random.OneOf({1.0f, 0.5f, -1.0f, -0.5f, 0.3f, static_cast<float>(random.Normal())}));
      factors.push_back(random.OneOf({1.0f, 2.0f, 1.7f}));
      min_keys.push_back(random.OneOf({0u, 1u, 0x3e000000u, 0x3f000001u, kNanKey, kNanKey + 1,
                                       static_cast<uint32_t>(random() & 0x7fffffff)}));
    }
    for (const auto& model : models) pointers.push_back(model.data());
    const auto flip = [&] { return random.Chance(0.5); };
    block = {.base = base.data(),
             .models = pointers.data(),
             .num_models = num_models,
             .weight = weights.data(),
             .factor = flip() ? factors.data() : nullptr,
             .min_key = min_keys.data(),
             .elect = flip(),
             .elect_by_count = flip(),
             .elect_weighted = flip(),
             .zero_elects_minus = flip(),
             .divide = flip(),
             .divisor = random.OneOf({1.0f, 3.0f, -0.7f}),
             .lambda = random.OneOf({1.0f, 0.4f, -2.0f, 0.0f})};
  }

  reference::ElementRule Rule() const {
    return {.elect = block.elect,
            .elect_by_count = block.elect_by_count,
            .elect_weighted = block.elect_weighted,
            .zero_elects_minus = block.zero_elects_minus,
            .normalize = block.divide,
            .weight_sum = block.divisor,
            .lambda = block.lambda};
  }

  std::vector<reference::Voter> Voters(size_t i) const {
    std::vector<reference::Voter> voters;
    for (size_t m = 0; m < num_models; ++m) {
      float d = models[m][i] - base[i];
      if (reference::Key(d) < min_keys[m]) d = 0;
      if (block.factor != nullptr) d *= factors[m];
      voters.push_back({models[m][i], d, weights[m]});
    }
    return voters;
  }
};

TEST(Kernels, MergeTaskVectors) {
  Random random;
  ForEachTarget([&] {
    for (size_t n : test::Lengths()) {
      for (Kind kind : test::kAllKinds) {
        const Case c(random, n, kind);
        std::vector<float> room(c.num_models * kLanePadding), out(n + kLanePadding, 7.0f);
        VoteCounts counts{.conflicts = 5, .sign_sum = 11};
        MergeTaskVectors(c.block, n, room.data(), out.data(), &counts);
        uint64_t conflicts = 5;
        for (size_t i = 0; i < n; ++i) {
          bool conflict = false;
          const float expected = reference::MergeElement(c.Rule(), c.base[i], c.Voters(i), &conflict);
          ASSERT_TRUE(SameLane(out[i], expected)) << n << " " << i << ": " << out[i] << " not " << expected;
          conflicts += c.block.elect && conflict ? 1 : 0;
        }
        ASSERT_EQ(counts.conflicts, conflicts);
      }
    }
  });
}

// Sources as they are encoded give what their lanes give, at odd addresses and without padding.
TEST(Kernels, MergeEncodedTaskVectors) {
  Random random;
  size_t compared = 0;
  ForEachTarget([&] {
    for (size_t n : test::Lengths()) {
      for (Kind kind : test::kAllKinds) {
        Case c(random, n, kind);
        if (!MergesEncoded(c.block, DType::kBF16)) continue;
        ++compared;
        std::vector<std::vector<std::byte>> encoded;
        std::vector<const void*> pointers;
        const auto encode = [&](std::vector<float>& lanes) {
          NonFinite ignored;
          encoded.emplace_back(n * 2 + 1);
          EncodeLanes(DType::kBF16, lanes.data(), n, encoded.back().data() + 1, &ignored);
          DecodeLanes(DType::kBF16, encoded.back().data() + 1, n, lanes.data());
          return static_cast<const void*>(encoded.back().data() + 1);
        };
        TaskVectorBlock block = c.block;
        block.type = DType::kBF16;
        block.base = encode(c.base);
        for (auto& model : c.models) pointers.push_back(encode(model));
        block.models = pointers.data();
        std::vector<float> room(c.num_models * kLanePadding), out(n + kLanePadding), expected(n + kLanePadding);
        VoteCounts counts, expected_counts;
        MergeTaskVectors(block, n, room.data(), out.data(), &counts);
        MergeTaskVectors(c.block, n, room.data(), expected.data(), &expected_counts);
        for (size_t i = 0; i < n; ++i) ASSERT_TRUE(SameLane(out[i], expected[i])) << n << " " << i;
        ASSERT_EQ(counts.conflicts, expected_counts.conflicts);
      }
    }
  });
  EXPECT_GT(compared, 100u);
}

TEST(Kernels, CountElectedSigns) {
  Random random;
  ForEachTarget([&] {
    for (size_t n : test::Lengths()) {
      for (Kind kind : test::kAllKinds) {
        const Case c(random, n, kind);
        VoteCounts counts{.conflicts = 5, .sign_sum = -11};
        CountElectedSigns(c.block, n, &counts);
        int64_t sum = -11;
        for (size_t i = 0; i < n; ++i) {
          const float total = reference::Total(c.Rule(), c.Voters(i));
          sum += total > 0 ? 1 : total < 0 ? -1 : 0;
        }
        ASSERT_EQ(counts.sign_sum, sum);
        ASSERT_EQ(counts.conflicts, 5u);
      }
    }
  });
}

TEST(Kernels, WeightedSum) {
  Random random;
  ForEachTarget([&] {
    for (size_t n : test::Lengths()) {
      for (Kind kind : test::kAllKinds) {
        const Case c(random, n, kind);
        std::vector<float> out(n + kLanePadding);
        std::vector<const float*> lanes;
        for (const auto& model : c.models) lanes.push_back(model.data());
        WeightedSum(lanes.data(), c.num_models, c.weights.data(), c.block.divide, c.block.divisor, n,
                    out.data());
        for (size_t i = 0; i < n; ++i) {
          float sum = 0;
          for (size_t m = 0; m < c.num_models; ++m) sum += c.models[m][i] * c.weights[m];
          if (c.block.divide) sum /= c.block.divisor;
          ASSERT_TRUE(SameLane(out[i], sum)) << n << " " << i;
        }
      }
    }
  });
}

}  // namespace
}  // namespace braid
