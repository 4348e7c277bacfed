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
      std::vector<uint32_t> all(n), keys(n), places(n);
      StoreKeys(d.data(), n, all.data());
      for (size_t i = 0; i < n; ++i) ASSERT_EQ(all[i], reference::Key(d[i]));
      const auto any = [&] { return n == 0 ? 0u : all[random.Below(n)]; };
      for (auto [low, high] :
           {std::pair{0u, kNanKey}, std::pair{any(), any()}, std::pair{any(), any()}, std::pair{0u, 0u}}) {
        if (low > high) std::swap(low, high);
        uint64_t above = 5, expected_above = 5;
        const size_t count = CollectKeys(d.data(), n, low, high, keys.data(), places.data(), &above);
        size_t expected = 0;
        for (size_t i = 0; i < n; ++i) {
          expected_above += all[i] > high;
          if (all[i] < low || all[i] > high) continue;
          ASSERT_LT(expected, count);
          ASSERT_EQ(keys[expected], all[i]);
          ASSERT_EQ(places[expected++], i);
        }
        ASSERT_EQ(count, expected);
        ASSERT_EQ(above, expected_above);
      }
    }
  });
}

TEST(Kernels, CollectTaskVectorKeys) {
  Random random;
  ForEachTarget([&] {
    for (size_t n : test::Lengths()) {
      for (DType type : {DType::kF16, DType::kBF16, DType::kF32}) {
        const std::vector<float> base = RandomLanes(random, n, test::kAllKinds[n % 4]);
        const std::vector<float> model = RandomLanes(random, n, test::kAllKinds[(n + 1) % 4]);
        const auto encoded = [&](const std::vector<float>& lanes) {   // ends where the elements do
          const auto size = static_cast<size_t>(LaneBytes(type));
          std::vector<std::byte> bytes(n * size);
          NonFinite ignored;
          EncodeLanes(type, Padded(random, lanes).data(), n, bytes.data(), &ignored);
          return bytes;
        };
        const std::vector<std::byte> b = encoded(base), x = encoded(model);
        std::vector<float> decoded(n + kLanePadding), d(n + kLanePadding);
        DecodeLanes(type, b.data(), n, decoded.data());
        DecodeTaskVector(type, x.data(), decoded.data(), n, d.data());
        const uint32_t key = n == 0 ? 0 : reference::Key(d[random.Below(n)]);
        std::vector<uint32_t> keys(n), places(n), expected_keys(n), expected_places(n);
        uint64_t above = 5, expected_above = 5;
        const size_t count = CollectTaskVectorKeys(type, b.data(), x.data(), n, key / 2, key, keys.data(),
                                                   places.data(), &above);
        ASSERT_EQ(count, CollectKeys(d.data(), n, key / 2, key, expected_keys.data(), expected_places.data(),
                                     &expected_above));
        ASSERT_EQ(keys, expected_keys);
        ASSERT_EQ(places, expected_places);
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
    for (float& lane : base)
      if (lane == 0 && random.Chance(0.5)) lane = -0.0f;   // stays, where nothing is added
    for (size_t m = 0; m < num_models; ++m) {
      models.push_back(Padded(random, RandomLanes(random, n, kind)));
      weights.push_back(random.OneOf({1.0f, 0.5f, -1.0f, -0.5f, 0.3f, static_cast<float>(random.Normal())}));
      factors.push_back(random.OneOf({1.0f, 2.0f, 1.7f}));
      min_keys.push_back(random.OneOf({0u, 1u, 0x3e000000u, 0x3f000001u, kNanKey, kNanKey + 1,
                                       static_cast<uint32_t>(random.Below(kNanKey + 2))}));
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
    if (random.Chance(0.4)) MakeUsual(random, random.Chance(0.7));
  }

  // ties as recipes have it, for which there is a kernel of its own.
  void MakeUsual(Random& random, bool positive) {
    for (float& weight : weights) {
      // Beside some of these a divisor of next to nothing counts.
      if (random.Chance(0.1)) weight = random.OneOf({0x1p-100f, 0x1p-101f, 0x1p-126f, 1e-43f});
      weight = positive ? std::fabs(weight) : weight;
    }
    block.factor = nullptr;
    block.elect = block.elect_weighted = block.divide = true;
    block.elect_by_count = block.zero_elects_minus = false;
    block.lambda = 1;
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
        std::vector<uint64_t> uncounted((n + 63) / 64, 0);
        for (uint64_t& word : uncounted) word = random.Chance(0.5) ? 0 : random();
        const bool all = random.Chance(0.5);
        MergeTaskVectors(c.block, n, room.data(), out.data(), all ? nullptr : uncounted.data(), &counts);
        uint64_t conflicts = 5;
        for (size_t i = 0; i < n; ++i) {
          bool conflict = false;
          const float expected = reference::MergeElement(c.Rule(), c.base[i], c.Voters(i), &conflict);
          ASSERT_TRUE(SameLane(out[i], expected)) << n << " " << i << ": " << out[i] << " not " << expected;
          conflicts += c.block.elect && conflict && (all || (uncounted[i / 64] >> i % 64 & 1) == 0) ? 1 : 0;
        }
        ASSERT_EQ(counts.conflicts, conflicts);
      }
    }
  });
}

// Open entries by the definition of OpenEntries.
struct OpenReference {
  std::vector<uint64_t> words, staying;

  OpenReference(const Case& c, const std::vector<uint32_t>& sure_keys) : words((c.n + 63) / 64), staying(c.num_models) {
    for (size_t i = 0; i < c.n; ++i)
      for (size_t m = 0; m < c.num_models; ++m) {
        const uint32_t key = reference::Key(c.models[m][i] - c.base[i]);
        if (key < c.min_keys[m]) continue;
        ++staying[m];
        if (key < sure_keys[m]) words[i / 64] |= uint64_t{1} << i % 64;
      }
  }
};

std::vector<uint32_t> RandomSureKeys(Random& random, const Case& c) {
  std::vector<uint32_t> sure_keys;
  for (uint32_t min_key : c.min_keys) {
    const bool decided = min_key > kNanKey || random.Chance(0.3);
    sure_keys.push_back(decided ? min_key : min_key + static_cast<uint32_t>(random.Below(kNanKey + 2 - min_key)));
  }
  return sure_keys;
}

TEST(Kernels, FindOpen) {
  Random random;
  ForEachTarget([&] {
    for (size_t n : test::Lengths()) {
      for (Kind kind : test::kAllKinds) {
        const Case c(random, n, kind);
        const std::vector<uint32_t> sure_keys = RandomSureKeys(random, c);
        const OpenReference expected(c, sure_keys);
        std::vector<uint64_t> words(expected.words.size(), random()), staying(c.num_models, 7);
        FindOpen(c.block, n, {sure_keys.data(), staying.data(), words.data()});
        ASSERT_EQ(words, expected.words);
        for (size_t m = 0; m < c.num_models; ++m) ASSERT_EQ(staying[m], 7 + expected.staying[m]);
      }
    }
  });
}

// From encoded elements to encoded elements, at odd addresses and without padding, as the long way does it.
TEST(Kernels, MergeEncoded) {
  Random random;
  size_t merged = 0, refused = 0;
  ForEachTarget([&] {
    for (size_t n : test::Lengths()) {
      for (Kind kind : test::kAllKinds) {
        Case c(random, n, kind);
        const auto [from, to] =
            random.OneOf({std::pair{DType::kBF16, DType::kBF16}, std::pair{DType::kF32, DType::kF32},
                          std::pair{DType::kF32, DType::kBF16}});
        const auto from_size = static_cast<size_t>(LaneBytes(from)), to_size = static_cast<size_t>(LaneBytes(to));
        std::vector<std::vector<std::byte>> encoded;
        std::vector<const void*> pointers;
        NonFinite ignored;
        const auto encode = [&](std::vector<float>& lanes) {
          encoded.emplace_back(n * from_size + 1);
          EncodeLanes(from, lanes.data(), n, encoded.back().data() + 1, &ignored);
          DecodeLanes(from, encoded.back().data() + 1, n, lanes.data());
          return static_cast<const void*>(encoded.back().data() + 1);
        };
        TaskVectorBlock block = c.block;
        block.base = encode(c.base);
        for (auto& model : c.models) pointers.push_back(encode(model));
        block.models = pointers.data();

        const std::vector<uint32_t> sure_keys = RandomSureKeys(random, c);
        const OpenReference open(c, sure_keys);
        const bool with_open = random.Chance(0.5);
        std::vector<float> room(c.num_models * kLanePadding), lanes(n + kLanePadding);
        VoteCounts expected_counts{.conflicts = 3};
        MergeTaskVectors(c.block, n, room.data(), lanes.data(), with_open ? open.words.data() : nullptr,
                         &expected_counts);
        std::vector<std::byte> expected(n * to_size), out(n * to_size + 2, std::byte{0x5a});
        NonFinite bad;
        EncodeLanes(to, lanes.data(), n, expected.data(), &bad);

        std::vector<uint64_t> words(open.words.size(), random()), staying(c.num_models, 7);
        VoteCounts counts{.conflicts = 3};
        const OpenEntries entries{sure_keys.data(), staying.data(), words.data()};
        if (!MergeEncoded(block, from, to, n, out.data() + 1, &counts, with_open ? &entries : nullptr)) {
          ++refused;
          ASSERT_EQ(counts.conflicts, 3u);
          for (uint64_t count : staying) ASSERT_EQ(count, 7u);
          continue;
        }
        ++merged;
        ASSERT_EQ(bad.nan + bad.inf, 0u);
        ASSERT_TRUE(std::equal(expected.begin(), expected.end(), out.begin() + 1)) << n;
        ASSERT_EQ(out.front(), std::byte{0x5a});
        ASSERT_EQ(out.back(), std::byte{0x5a});
        ASSERT_EQ(counts.conflicts, expected_counts.conflicts);
        if (!with_open) continue;
        ASSERT_EQ(words, open.words);
        for (size_t m = 0; m < c.num_models; ++m) ASSERT_EQ(staying[m], 7 + open.staying[m]);
      }
    }
  });
  EXPECT_GT(merged, 50u);
  EXPECT_GT(refused, 50u);
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
