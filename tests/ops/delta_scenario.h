// Random sources for methods on task vectors, and the comparison of what a merger makes of them with what a plain
// scalar reference does.
#pragma once

#include <chrono>
#include <functional>

#include "tests/ops/merge_driver.h"
#include "tests/ops/reference.h"

namespace braid::test {

// One tensor: what the driver gets, and the same as lanes.
struct DeltaTensor {
  ScopeTensor sources;
  std::vector<float> base;
  std::vector<std::vector<float>> models;   // empty: the model has no such tensor
};

struct DeltaOptions {
  size_t row = 0;            // 0: one row
  double odd_lanes = 0;      // share of NaN, infinities, huge numbers and zeros
  double missing = 0;        // share of the models that lack the tensor
  std::vector<double> scales = {1e-3};   // of the changes, one chosen per model
};

inline DeltaTensor RandomDeltaTensor(Random& random, std::string name, size_t elements, size_t num_models,
                                     const DeltaOptions& options) {
  DeltaTensor tensor{.sources = ScopeTensor(std::move(name), elements), .base = {}, .models = {}};
  tensor.sources.row = options.row;
  const bool one_type = random.Chance(0.5);
  const auto any_type = [&] { return random.OneOf({DType::kF64, DType::kF32, DType::kF16, DType::kBF16}); };
  const DType type = any_type();
  const auto sprinkle = [&](std::vector<float>& lanes) {
    for (float& lane : lanes)
      if (random.Chance(options.odd_lanes)) lane = random.OneOf({NAN, INFINITY, -INFINITY, 3e38f, -3e38f, 0.0f, -0.0f});
  };
  const auto add = [&](std::vector<float> lanes, Source& source, std::vector<float>& decoded) {
    sprinkle(lanes);
    source.type = one_type ? type : any_type();
    source.bytes = reference::Encode(source.type, lanes);
    decoded = reference::Decode(source.type, source.bytes);
  };
  std::vector<float> base(elements);
  for (float& lane : base) lane = random.Chance(0.02) ? -0.0f : static_cast<float>(random.Normal() * 0.05);
  add(base, tensor.sources.base, tensor.base);
  for (size_t m = 0; m < num_models; ++m) {
    std::vector<float> lanes = base;
    const double scale = options.scales[random.Below(options.scales.size())];
    const bool coarse = random.Chance(0.4);
    const double changed = random.OneOf({1.0, 0.5, 0.05});
    for (float& lane : lanes) {
      if (!random.Chance(changed)) continue;
      const double step = coarse ? static_cast<double>(random.Below(7)) - 3 : random.Normal();
      lane += static_cast<float>(step * scale);
    }
    tensor.models.emplace_back();
    tensor.sources.models.push_back({});
    if (!random.Chance(options.missing)) add(lanes, tensor.sources.models.back(), tensor.models.back());
  }
  return tensor;
}

// The entries of element i, of the models that have the tensor, and which models those are.
inline std::vector<std::pair<size_t, float>> EntriesOf(const DeltaTensor& tensor, size_t i) {
  std::vector<std::pair<size_t, float>> entries;
  for (size_t m = 0; m < tensor.models.size(); ++m)
    if (!tensor.models[m].empty()) entries.emplace_back(m, tensor.models[m][i] - tensor.base[i]);
  return entries;
}

// What `merged`, the merged task vector of an element, makes of it.
inline float Applied(const DeltaTensor& tensor, size_t i, float merged, float lambda) {
  bool invalid = std::isnan(tensor.base[i]);
  for (const auto& [m, d] : EntriesOf(tensor, i)) invalid |= std::isnan(d);
  if (invalid) return NAN;
  const float scaled = merged * lambda;
  return scaled == 0 ? tensor.base[i] : tensor.base[i] + scaled;
}

inline DriveOptions RandomDrive(Random& random) {
  return {.blocks_per_tile = 1 + random.Below(3),
          .workers = 1 + random.Below(4),
          .type = random.OneOf({DType::kF64, DType::kF32, DType::kF16, DType::kBF16})};
}

// Merges the scope and expects, of tensor t, the elements expected[t].
inline Driven ExpectMerged(Random& random, const MethodInfo& method, const std::vector<DeltaTensor>& tensors,
                           const Coefficients& coefficients, const std::vector<std::vector<float>>& expected) {
  std::vector<ScopeTensor> sources;
  for (const DeltaTensor& tensor : tensors) {
    sources.push_back(tensor.sources);
    sources.back().coefficients = coefficients;
  }
  const DriveOptions drive = RandomDrive(random);
  const Driven driven = Drive(method, sources, drive, random);
  for (size_t t = 0; t < tensors.size(); ++t) {
    const std::vector<std::byte> wanted = reference::Encode(drive.type, expected[t]);
    const std::vector<std::byte>& bytes = driven.tensors[t];
    EXPECT_EQ(bytes.size(), wanted.size());
    if (bytes == wanted || bytes.size() != wanted.size()) continue;
    const auto at = std::mismatch(bytes.begin(), bytes.end(), wanted.begin()).first - bytes.begin();
    const size_t i = static_cast<size_t>(at) / static_cast<size_t>(LaneBytes(drive.type));
    ADD_FAILURE() << "element " << i << " of " << expected[t].size() << " as " << DTypeName(drive.type) << ": "
                  << reference::Decode(drive.type, bytes)[i] << " instead of " << expected[t][i];
  }
  return driven;
}

inline size_t RandomSize(Random& random, size_t most) {
  const size_t size = random.OneOf<size_t>({1, 2, 3, 15, 17, 100, 1000, 1023, 1025, 5000, 65'536, 65'537, 150'001});
  return size <= most ? size : 1 + random.Below(3000);
}

// Cases until the time is spent, but so many at least.
inline void RepeatCases(int least, double seconds, const std::function<void(int)>& body) {
  const auto start = std::chrono::steady_clock::now();
  const auto spent = [&] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() >= seconds;
  };
  int cases = 0;
  for (; (cases < least || !spent()) && !testing::Test::HasFailure(); ++cases) {
    SCOPED_TRACE("case " + std::to_string(cases));
    body(cases);
  }
  std::printf("[  CASES   ] %d\n", cases);
}

}  // namespace braid::test
