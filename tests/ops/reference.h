// A plain scalar reference of the merge methods: what ops/ must equal bit for bit.
//
// Written from the definitions and independent of the production code: no SIMD, no histograms, no tiles.
// Selection is std::nth_element over (magnitude descending, index ascending), rounding is done in float64 on
// exact quotients, sums are plain loops. Slow and simple on purpose. Compile with -ffp-contract=off, like all
// of Braid.
//
// Use: decode sources with Decode (lanes are float32), fill one Tensor per output tensor of the scope (one
// for scope = "tensor"), call MergeTaskVectors or Linear, then round the lanes to the output type with
// Encode.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "ops/dtype.h"

namespace braid::reference {

// --- types ------------------------------------------------------------------------------------------------

// A binary format with `mantissa` stored bits and least normal exponent `min_exponent`.
struct Format {
  int mantissa, min_exponent;
  uint32_t infinity;   // its bits; also the first magnitude that is no finite number
  uint32_t quiet_nan;  // canonical
  uint32_t sign;
};
inline constexpr Format kBF16{7, -126, 0x7f80, 0x7fc0, 0x8000};
inline constexpr Format kF16{10, -14, 0x7c00, 0x7e00, 0x8000};
inline constexpr Format kF32{23, -126, 0x7f800000, 0x7fc00000, 0x80000000};

// The bits of x rounded to nearest even.
inline uint32_t Round(const Format& format, double x) {
  if (std::isnan(x)) return format.quiet_nan;
  const uint32_t sign = std::signbit(x) ? format.sign : 0;
  const double magnitude = std::fabs(x);
  if (std::isinf(x)) return sign | format.infinity;
  if (magnitude == 0) return sign;
  const int exponent = std::max(std::ilogb(magnitude), format.min_exponent);
  const double units = std::ldexp(magnitude, format.mantissa - exponent);  // exact
  double whole = std::floor(units);
  const double rest = units - whole;
  if (rest > 0.5 || (rest == 0.5 && std::fmod(whole, 2.0) == 1.0)) whole += 1;
  // A subnormal has no implicit bit and exponent field 0, so a carry lands in the right place of itself.
  const uint64_t bits = (static_cast<uint64_t>(exponent - format.min_exponent) << format.mantissa) +
                        static_cast<uint64_t>(whole);
  return sign | static_cast<uint32_t>(std::min<uint64_t>(bits, format.infinity));
}

// The value of a pattern.
inline double Value(const Format& format, uint32_t bits) {
  const uint32_t magnitude = bits & (format.sign - 1);
  const double sign = (bits & format.sign) != 0 ? -1.0 : 1.0;
  if (magnitude > format.infinity) return std::numeric_limits<double>::quiet_NaN();
  if (magnitude == format.infinity) return sign * std::numeric_limits<double>::infinity();
  const uint32_t field = magnitude >> format.mantissa;
  const uint32_t fraction = magnitude & ((1u << format.mantissa) - 1);
  const uint32_t digits = field == 0 ? fraction : fraction | 1u << format.mantissa;
  const int exponent = static_cast<int>(std::max(field, 1u)) - 1 + format.min_exponent;
  return sign * std::ldexp(static_cast<double>(digits), exponent - format.mantissa);
}

// Elements of a lane type, as they lie in a file, to float32 lanes.
inline std::vector<float> Decode(DType type, std::span<const std::byte> bytes) {
  std::vector<float> lanes;
  const size_t size = type == DType::kF64 ? 8 : type == DType::kF32 ? 4 : 2;
  for (size_t at = 0; at + size <= bytes.size(); at += size) {
    uint64_t raw = 0;
    std::memcpy(&raw, bytes.data() + at, size);
    if (type == DType::kF64)
      lanes.push_back(std::bit_cast<float>(Round(kF32, std::bit_cast<double>(raw))));
    else if (type == DType::kF32)
      lanes.push_back(std::bit_cast<float>(static_cast<uint32_t>(raw)));
    else
      lanes.push_back(
          static_cast<float>(Value(type == DType::kF16 ? kF16 : kBF16, static_cast<uint32_t>(raw))));
  }
  return lanes;
}

// Lanes rounded to a lane type. Every NaN becomes the canonical one.
inline std::vector<std::byte> Encode(DType type, std::span<const float> lanes) {
  const size_t size = type == DType::kF64 ? 8 : type == DType::kF32 ? 4 : 2;
  std::vector<std::byte> bytes(lanes.size() * size);
  for (size_t i = 0; i < lanes.size(); ++i) {
    uint64_t raw = Round(type == DType::kF16 ? kF16 : type == DType::kBF16 ? kBF16 : kF32, lanes[i]);
    if (type == DType::kF64) {
      raw =
          std::isnan(lanes[i]) ? 0x7ff8000000000000u : std::bit_cast<uint64_t>(static_cast<double>(lanes[i]));
    }
    std::memcpy(bytes.data() + i * size, &raw, size);
  }
  return bytes;
}

// --- sums and selection -----------------------------------------------------------------------------------

// Magnitudes as integers; all NaNs are equal and rank above infinity.
inline uint32_t Key(float d) {
  if (std::isnan(d)) return 0x7f800001;
  return std::bit_cast<uint32_t>(std::fabs(d));
}

// The float64 sum of |d| over those entries of one tensor that `wanted` selects: reduction blocks of 65,536
// elements, each with 16 interleaved sums that are added in pairs at distance 8, 4, 2, 1; blocks in order.
inline double SumOfMagnitudes(std::span<const float> d, const std::function<bool(float)>& wanted) {
  double total = 0;
  for (size_t block = 0; block < d.size(); block += 65'536) {
    double lane[16] = {};
    for (size_t i = block; i < std::min<size_t>(d.size(), block + 65'536); ++i)
      if (wanted(d[i])) lane[i % 16] += std::fabs(static_cast<double>(d[i]));
    double pair[8], four[4], two[2];
    for (int i = 0; i < 8; ++i) pair[i] = lane[i] + lane[i + 8];
    for (int i = 0; i < 4; ++i) four[i] = pair[i] + pair[i + 4];
    for (int i = 0; i < 2; ++i) two[i] = four[i] + four[i + 2];
    total += two[0] + two[1];
  }
  return total;
}

// Float32 weights added as mergekit's tensors do: sums 0 to 3 over whole groups of four, the rest onto sum 0.
inline float SumOfWeights(const std::vector<double>& weights) {
  float a = 0, b = 0, c = 0, d = 0;
  size_t i = 0;
  for (; i + 4 <= weights.size(); i += 4) {
    a += static_cast<float>(weights[i]), b += static_cast<float>(weights[i + 1]);
    c += static_cast<float>(weights[i + 2]), d += static_cast<float>(weights[i + 3]);
  }
  for (; i < weights.size(); ++i) a += static_cast<float>(weights[i]);
  a += b;
  a += c;
  return a + d;
}

// --- one element ------------------------------------------------------------------------------------------

struct ElementRule {
  bool elect = false;
  bool elect_by_count = false;
  bool elect_weighted = true;
  bool zero_elects_minus = false;
  bool normalize = false;
  float weight_sum = 1;  // divisor without an election
  float lambda = 1;
};

// A voter's part in one element: its lane, its trimmed and rescaled task vector, its weight.
struct Voter {
  float x, d, weight;
};

inline float Total(const ElementRule& rule, std::span<const Voter> voters) {
  float total = 0;
  for (const Voter& voter : voters) {
    const float vote = rule.elect_weighted ? voter.d * voter.weight : voter.d;
    if (rule.elect_by_count)
      total += vote > 0 ? 1.0f : vote < 0 ? -1.0f : 0.0f;
    else
      total += vote;
  }
  return total;
}

// *conflict: whether an entry voted against the elected sign.
inline float MergeElement(const ElementRule& rule, float base, std::span<const Voter> voters,
                          bool* conflict) {
  float mixed = 0, divisor = 0;
  *conflict = false;
  bool nan = std::isnan(base);
  const float total = Total(rule, voters);
  const bool plus = total > 0 || (total == 0 && !rule.zero_elects_minus);
  for (const Voter& voter : voters) {
    nan = nan || std::isnan(voter.x);
    const float weighted = voter.d * voter.weight;
    if (!rule.elect) {
      mixed += weighted;
      continue;
    }
    const float vote = rule.elect_weighted ? weighted : voter.d;
    if (plus ? vote < 0 : vote > 0) *conflict = true;
    if (plus ? vote > 0 : vote < 0) mixed += weighted, divisor += voter.weight;
  }
  if (!rule.elect) divisor = rule.weight_sum;
  if (rule.normalize && (rule.elect ? divisor != 0 : std::fabs(divisor) >= 1e-8f)) mixed /= divisor;
  mixed *= rule.lambda;
  if (nan) return std::bit_cast<float>(0x7fc00000u);
  return mixed == 0 ? base : base + mixed;
}

// --- whole scopes -----------------------------------------------------------------------------------------

struct Tensor {
  std::string name;  // orders the tensors of a scope, bytewise
  std::vector<float> base = {};
  // Lanes of each model; empty: this model has nothing here, and counts as the base.
  std::vector<std::vector<float>> models = {};
  std::vector<double> weights = {};  // per model; one of weight 0 is not looked at but for selection
  double lambda = 1;
  bool normalize = false;
};

struct TaskVectorOptions {
  std::vector<double> densities;  // per model
  bool elect = true;              // false: task_arithmetic
  bool rescale = false;
  bool keep_equals = false;     // ties_at_threshold = "keep"
  bool majority = false;        // zero_sign = "majority"
  bool elect_by_count = false;  // elect = "count"
  bool elect_weighted = true;
};

struct Merged {
  std::vector<std::vector<float>> tensors;  // in the order given
  uint64_t entries = 0;                     // of the task vectors of all models that have a weight anywhere
  uint64_t kept = 0;                        // of these, how many stay
  uint64_t conflicts = 0;
};

// One model's task vector over the whole scope, per tensor, trimmed and rescaled in place. Returns what it
// keeps.
inline uint64_t Trim(std::vector<std::vector<float>>& tensors, double density,
                     const TaskVectorOptions& options) {
  struct Entry {
    uint32_t key;
    size_t tensor, index;
  };
  std::vector<Entry> entries;
  for (size_t t = 0; t < tensors.size(); ++t)
    for (size_t i = 0; i < tensors[t].size(); ++i) entries.push_back({Key(tensors[t][i]), t, i});
  const size_t n = entries.size();
  if (density >= 1 || n == 0) return n;
  const auto part = static_cast<uint64_t>(density * static_cast<double>(n));
  uint64_t keep = options.keep_equals ? std::min<uint64_t>(part + 1, n) : std::max<uint64_t>(part, 1);
  if (density <= 0) keep = 0;
  if (keep == n) return n;

  std::vector<std::vector<float>> kept;
  for (const auto& tensor : tensors) kept.emplace_back(tensor.size(), 0.0f);
  double norm = 0, kept_norm = 0;
  if (keep > 0) {
    const auto before = [](const Entry& a, const Entry& b) {
      if (a.key != b.key) return a.key > b.key;
      return a.tensor != b.tensor ? a.tensor < b.tensor : a.index < b.index;
    };
    std::nth_element(entries.begin(), entries.begin() + static_cast<ptrdiff_t>(keep - 1), entries.end(),
                     before);
    const uint32_t threshold = entries[keep - 1].key;
    if (options.keep_equals)
      keep = static_cast<uint64_t>(std::count_if(entries.begin(), entries.end(),
                                                 [&](const Entry& entry) { return entry.key >= threshold; }));
    std::nth_element(entries.begin(), entries.begin() + static_cast<ptrdiff_t>(keep - 1), entries.end(),
                     before);
    // Kept magnitudes: those that share the threshold's upper 15 bits are counted per magnitude and
    // multiplied, largest first; the larger ones are summed in place.
    std::map<uint32_t, uint64_t, std::greater<>> counted;
    for (size_t e = 0; e < keep; ++e) {
      const Entry& entry = entries[e];
      kept[entry.tensor][entry.index] = tensors[entry.tensor][entry.index];
      if (entry.key >> 16 == threshold >> 16) ++counted[entry.key];
    }
    for (const auto& tensor : tensors) {
      norm += SumOfMagnitudes(tensor, [](float) { return true; });
      kept_norm += SumOfMagnitudes(tensor, [&](float d) { return Key(d) >> 16 > threshold >> 16; });
    }
    for (const auto& [key, count] : counted)
      kept_norm += static_cast<double>(count) * static_cast<double>(std::bit_cast<float>(key));
  }
  tensors = std::move(kept);
  const bool finite = std::isfinite(norm) && std::isfinite(kept_norm);
  if (options.rescale && finite && norm >= 1e-7 && kept_norm >= 1e-7) {
    const auto factor = static_cast<float>(norm / kept_norm);
    for (auto& tensor : tensors)
      for (float& d : tensor) d *= factor;
  }
  return keep;
}

inline ElementRule RuleFor(const Tensor& tensor, const TaskVectorOptions& options) {
  return {.elect = options.elect,
          .elect_by_count = options.elect_by_count,
          .elect_weighted = options.elect_weighted,
          .normalize = tensor.normalize,
          .weight_sum = SumOfWeights(tensor.weights),
          .lambda = static_cast<float>(tensor.lambda)};
}

// ties (elect) and task_arithmetic over one scope: all tensors given are one vector, in the order of their
// names. Sums of float64 are taken per tensor, and the tensors' sums added in that order.
inline Merged MergeTaskVectors(const std::vector<Tensor>& tensors, const TaskVectorOptions& options) {
  Merged merged;
  merged.tensors.resize(tensors.size());
  std::vector<size_t> order(tensors.size());
  for (size_t t = 0; t < order.size(); ++t) order[t] = t;
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    const auto unsigned_less = [](char x, char y) {
      return static_cast<uint8_t>(x) < static_cast<uint8_t>(y);
    };
    return std::lexicographical_compare(tensors[a].name.begin(), tensors[a].name.end(),
                                        tensors[b].name.begin(), tensors[b].name.end(), unsigned_less);
  });
  // task[m][place]: task vectors, tensors in name order.
  std::vector<std::vector<std::vector<float>>> task(options.densities.size());
  for (size_t m = 0; m < task.size(); ++m) {
    for (size_t t : order) {
      std::vector<float>& d = task[m].emplace_back(tensors[t].base.size(), 0.0f);
      for (size_t i = 0; i < tensors[t].models[m].size(); ++i)
        d[i] = tensors[t].models[m][i] - tensors[t].base[i];
    }
    if (std::all_of(tensors.begin(), tensors.end(),
                    [&](const Tensor& tensor) { return tensor.weights[m] == 0; }))
      continue;
    for (const Tensor& tensor : tensors) merged.entries += tensor.base.size();
    merged.kept += Trim(task[m], options.densities[m], options);
  }
  const auto for_each_element = [&](const auto& visit) {
    std::vector<Voter> voters;
    for (size_t place = 0; place < order.size(); ++place) {
      const Tensor& tensor = tensors[order[place]];
      const ElementRule rule = RuleFor(tensor, options);
      for (size_t i = 0; i < tensor.base.size(); ++i) {
        voters.clear();
        for (size_t m = 0; m < task.size(); ++m)
          if (tensor.weights[m] != 0 && !tensor.models[m].empty())
            voters.push_back({tensor.models[m][i], task[m][place][i], static_cast<float>(tensor.weights[m])});
        visit(order[place], i, rule, voters);
      }
    }
  };
  int64_t signs = 0;
  for_each_element([&](size_t, size_t, const ElementRule& rule, const std::vector<Voter>& voters) {
    const float total = Total(rule, voters);
    signs += total > 0 ? 1 : total < 0 ? -1 : 0;
  });
  for_each_element([&](size_t t, size_t i, ElementRule rule, const std::vector<Voter>& voters) {
    rule.zero_elects_minus = options.majority && signs <= 0;
    bool conflict = false;
    merged.tensors[t].push_back(MergeElement(rule, tensors[t].base[i], voters, &conflict));
    merged.conflicts += options.elect && conflict ? 1 : 0;
  });
  return merged;
}

// linear, and average with weights of 1: lanes of the sources (a base that takes part is one of them).
inline std::vector<float> Linear(const std::vector<std::vector<float>>& sources,
                                 const std::vector<double>& weights, bool normalize) {
  std::vector<float> out(sources.empty() ? 0 : sources[0].size());
  const float divisor = SumOfWeights(weights);
  for (size_t i = 0; i < out.size(); ++i) {
    float sum = 0;
    for (size_t m = 0; m < sources.size(); ++m)
      if (weights[m] != 0) sum += sources[m][i] * static_cast<float>(weights[m]);
    out[i] = normalize ? sum / divisor : sum;
  }
  return out;
}

}  // namespace braid::reference
