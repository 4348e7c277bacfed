#include "tools/kernels/data.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <map>
#include <random>

#include "ops/kernels.h"

namespace braid::bench {
namespace {

constexpr size_t kPage = 4096;
// 4 KiB apart, a load waits for an older store to another page: files do not lie like that.
constexpr size_t kStagger = 832;

std::byte* Staggered(std::byte* memory) {
  static size_t operands = 0;
  return memory + operands++ % 8 * kStagger;
}

std::vector<float> Normal(uint64_t seed, float deviation) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0, deviation);
  std::vector<float> lanes(kPattern + kLanePadding);
  std::generate_n(lanes.begin(), kPattern, [&] { return normal(random); });
  return lanes;
}

const std::vector<float>& Weights(size_t source) {   // 0: the base
  static std::vector<float> weights[kMostModels + 1];
  std::vector<float>& lanes = weights[source];
  if (lanes.empty()) {
    lanes = Normal(source, source == 0 ? 0.02f : 0.0005f);
    for (size_t i = 0; source > 0 && i < kPattern; ++i) lanes[i] += Weights(0)[i];
  }
  return lanes;
}

std::vector<std::byte> Encoded(const std::vector<float>& lanes, DType type) {
  std::vector<std::byte> bytes(kPattern * static_cast<size_t>(LaneBytes(type)));
  NonFinite ignored;
  EncodeLanes(type, lanes.data(), kPattern, bytes.data(), &ignored);
  return bytes;
}

// A fine-tune minus the base, both rounded to `type` first.
std::vector<float> Delta(size_t model, DType type) {
  std::vector<float> base(kPattern + kLanePadding), d(kPattern + kLanePadding);
  DecodeLanes(type, Encoded(Weights(0), type).data(), kPattern, base.data());
  DecodeTaskVector(type, Encoded(Weights(model + 1), type).data(), base.data(), kPattern, d.data());
  return d;
}

std::vector<float> Lanes(const Source& source) {
  switch (source.what) {
    case What::kBase: return Weights(0);
    case What::kModel: return Weights(source.model + 1);
    case What::kDelta: return Delta(source.model, DType::kBF16);
    default: break;
  }
  std::vector<float> lanes(kPattern + kLanePadding);
  if (source.what == What::kZeros) return lanes;
  std::mt19937 random(1);
  for (float& lane : lanes) {
    const uint32_t low = source.what == What::kEqual ? kEqualKey : static_cast<uint32_t>(random());
    const uint32_t key = (kEqualKey & 0xffff0000) | (low & 0xffff);
    std::memcpy(&lane, &key, sizeof lane);
  }
  return lanes;
}

}  // namespace

Threshold ThresholdOf(size_t model, DType type) {
  std::vector<uint32_t> keys(kPattern);
  StoreKeys(Delta(model, type).data(), kPattern, keys.data());
  const auto at = [&](double density) {
    const auto place = keys.begin() + static_cast<ptrdiff_t>(density * kPattern);
    std::nth_element(keys.begin(), place, keys.end(), std::greater<>());
    return *place;
  };
  return {at(0.21), at(0.20), at(0.19)};
}

Operand::Operand(size_t bytes)
    : memory_(new std::byte[bytes + 2 * kPage + kLanePadding * sizeof(float)]()),
      begin_(Staggered(memory_.get())) {}

Operand::Operand(const Source& source, size_t n) : Operand(n * static_cast<size_t>(LaneBytes(source.type))) {
  const std::vector<std::byte> pattern = Encoded(Lanes(source), source.type);
  const size_t bytes = n * static_cast<size_t>(LaneBytes(source.type));
  for (size_t at = 0; at < bytes; at += pattern.size())
    std::memcpy(begin_ + at, pattern.data(), std::min(pattern.size(), bytes - at));
}

}  // namespace braid::bench
