#include "pipeline/diff.h"

#include <tbb/parallel_pipeline.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <type_traits>

#include "io/error.h"
#include "ops/kernels.h"
#include "ops/merger.h"
#include "pipeline/budget.h"
#include "pipeline/tensor_reader.h"
#include "pipeline/threads.h"

namespace braid {
namespace {

// --- elements ---------------------------------------------------------------------------------------------

// The loops over elements have no branches: on a pair of fine-tunes half of the elements differ, at random, and
// mispredicted branches took 8 ns per element.

template <typename Bits>
Bits LoadBits(const void* bytes, size_t i) {
  Bits bits;
  std::memcpy(&bits, static_cast<const std::byte*>(bytes) + i * sizeof(Bits), sizeof(Bits));
  return bits;
}

// Equal elements and distances in units in the last place: the bits of a floating-point number without the sign,
// negated for negative numbers, are integers that grow with its value; both zeros are 0. `infinity`: its bits.
template <typename Bits>
void CompareBits(const void* a, const void* b, size_t n, Bits infinity, ElementDifference* out) {
  using Unsigned = std::conditional_t<sizeof(Bits) == 8, uint64_t, uint32_t>;
  using Signed = std::make_signed_t<Unsigned>;
  constexpr int kSignShift = 8 * sizeof(Bits) - 1;
  constexpr Bits kMagnitude = static_cast<Bits>(~(Bits{1} << kSignShift));
  Unsigned equal = 0, not_finite = 0, largest = 0;
  for (size_t i = 0; i < n; ++i) {
    const Bits x = LoadBits<Bits>(a, i), y = LoadBits<Bits>(b, i);
    const Unsigned x_magnitude = x & kMagnitude, y_magnitude = y & kMagnitude;
    const Unsigned x_sign = Unsigned{0} - static_cast<Unsigned>(x >> kSignShift);
    const Unsigned y_sign = Unsigned{0} - static_cast<Unsigned>(y >> kSignShift);
    const auto x_order = static_cast<Signed>((x_magnitude ^ x_sign) - x_sign);  // negated when the sign is set
    const auto y_order = static_cast<Signed>((y_magnitude ^ y_sign) - y_sign);
    const Unsigned distance =
        static_cast<Unsigned>(std::max(x_order, y_order)) - static_cast<Unsigned>(std::min(x_order, y_order));
    const bool finite = (x_magnitude < infinity) & (y_magnitude < infinity);
    equal += x == y;
    not_finite += (x != y) & !finite;
    largest = std::max(largest, distance & (Unsigned{0} - finite));
  }
  out->equal += equal;
  out->not_finite += not_finite;
  out->largest_ulp = std::max<uint64_t>(out->largest_ulp, largest);
}

// The largest differences of finite values. Interleaved, because a compiler may not reorder maxima of its own accord.
void CompareValues(const double* a, const double* b, size_t n, ElementDifference* out) {
  constexpr double kLargest = std::numeric_limits<double>::max();
  std::array<double, kSumLanes> absolute{}, relative{};
  for (size_t i = 0; i < n; i += kSumLanes)
    for (size_t j = 0; j < kSumLanes; ++j) {
      const double x = std::abs(a[i + j]), y = std::abs(b[i + j]);
      const double larger = x > y ? x : y;
      const double difference = std::abs(a[i + j] - b[i + j]);
      const double distance = (x > y ? x : y) <= kLargest ? difference : 0.0;
      const double share = distance / (larger > 0 ? larger : 1.0);
      absolute[j] = distance > absolute[j] ? distance : absolute[j];
      relative[j] = share > relative[j] ? share : relative[j];
    }
  out->largest_absolute = std::max(out->largest_absolute, *std::max_element(absolute.begin(), absolute.end()));
  out->largest_relative = std::max(out->largest_relative, *std::max_element(relative.begin(), relative.end()));
}

// n values of a lane type as float64, exactly, then zeros up to a multiple of kSumLanes.
void Widen(DType type, const std::byte* bytes, size_t n, float* lanes, double* values) {
  if (type == DType::kF64) {
    std::memcpy(values, bytes, n * sizeof(double));
  } else {
    DecodeLanes(type, bytes, n, lanes);
    std::copy_n(lanes, n, values);
  }
  std::fill(values + n, values + (n + kSumLanes - 1) / kSumLanes * kSumLanes, 0.0);
}

// Up to kBlockLanes elements of one lane type.
void CompareSameType(DType type, const std::byte* a, const std::byte* b, size_t n, ElementDifference* out) {
  alignas(64) float lanes[kBlockLanes + kLanePadding];
  alignas(64) double x[kBlockLanes], y[kBlockLanes];
  Widen(type, a, n, lanes, x);
  Widen(type, b, n, lanes, y);
  CompareValues(x, y, n, out);
  switch (type) {
    case DType::kF16: return CompareBits<uint16_t>(a, b, n, 0x7c00, out);
    case DType::kBF16: return CompareBits<uint16_t>(a, b, n, 0x7f80, out);
    case DType::kF64: return CompareBits<uint64_t>(a, b, n, 0x7ff0'0000'0000'0000, out);
    default: return CompareBits<uint32_t>(a, b, n, 0x7f80'0000, out);
  }
}

// Up to kBlockLanes elements of two lane types, as float32.
void CompareAsFloat32(DType a_type, const std::byte* a, DType b_type, const std::byte* b, size_t n,
                      ElementDifference* out) {
  alignas(64) float x[kBlockLanes + kLanePadding], y[kBlockLanes + kLanePadding];
  DecodeLanes(a_type, a, n, x);
  DecodeLanes(b_type, b, n, y);
  CompareSameType(DType::kF32, reinterpret_cast<const std::byte*>(x), reinterpret_cast<const std::byte*>(y), n, out);
}

// Element i of a type of any number of bits up to 8, packed from the lowest bit of each byte up.
unsigned PackedElement(const std::byte* bytes, size_t i, size_t bits) {
  const size_t first = i * bits, last = first + bits - 1;
  unsigned pair = std::to_integer<unsigned>(bytes[first / 8]);
  if (last / 8 != first / 8) pair |= std::to_integer<unsigned>(bytes[last / 8]) << 8;
  return pair >> first % 8 & ((1u << bits) - 1);
}

uint64_t CountEqualBits(const std::byte* a, const std::byte* b, size_t n, size_t bits) {
  uint64_t equal = 0;
  if (bits < 8)
    for (size_t i = 0; i < n; ++i) equal += PackedElement(a, i, bits) == PackedElement(b, i, bits);
  else
    for (size_t i = 0; i < n; ++i) equal += std::memcmp(a + i * (bits / 8), b + i * (bits / 8), bits / 8) == 0;
  return equal;
}

ElementDifference CompareElements(DType a_type, const std::byte* a, DType b_type, const std::byte* b, size_t n) {
  ElementDifference out;
  out.elements = n;
  const auto a_bits = static_cast<size_t>(DTypeBits(a_type)), b_bits = static_cast<size_t>(DTypeBits(b_type));
  // Most tensors of most pairs are equal, and memcmp is as fast as memory.
  if (a_type == b_type && std::memcmp(a, b, BytesOf(n, DTypeBits(a_type))) == 0) {
    out.equal = n;
  } else if (!IsLaneType(a_type)) {
    out.equal = CountEqualBits(a, b, n, a_bits);
  } else {
    for (size_t start = 0; start < n; start += kBlockLanes) {
      const size_t count = std::min(kBlockLanes, n - start);
      const std::byte *x = a + start * (a_bits / 8), *y = b + start * (b_bits / 8);
      if (a_type == b_type) CompareSameType(a_type, x, y, count, &out);
      else CompareAsFloat32(a_type, x, b_type, y, count, &out);
    }
  }
  return out;
}

void Add(const ElementDifference& part, ElementDifference* total) {
  total->equal += part.equal;
  total->not_finite += part.not_finite;
  total->largest_absolute = std::max(total->largest_absolute, part.largest_absolute);
  total->largest_relative = std::max(total->largest_relative, part.largest_relative);
  total->largest_ulp = std::max(total->largest_ulp, part.largest_ulp);
}

// --- tensors ----------------------------------------------------------------------------------------------

// The same elements of both, on their way: read in order, compared anywhere, added up in order.
struct Window {
  size_t pair = 0;
  uint64_t first = 0, count = 0;  // elements
  ResidentRange a, b;
  ElementDifference found;
};
using WindowPtr = std::shared_ptr<Window>;

class Source {
 public:
  // `order`: of the pairs, by index.
  Source(const CheckpointDifference& diff, std::vector<size_t> order)
      : diff_(diff), order_(std::move(order)), a_(diff.a), b_(diff.b) {}

  // The next window, or null at the end.
  WindowPtr Next() {
    for (; next_ < order_.size(); ++next_, first_ = 0) {
      const TensorDifference& pair = diff_.tensors[order_[next_]];
      if (pair.compared && first_ < pair.elements.elements) return Read(pair);
    }
    return nullptr;
  }

  void Finish() { a_.Finish(), b_.Finish(); }

 private:
  WindowPtr Read(const TensorDifference& pair) {
    const CheckpointTensor &a = diff_.a.tensors[pair.a], &b = diff_.b.tensors[pair.b];
    const int a_bits = DTypeBits(a.info.dtype), b_bits = DTypeBits(b.info.dtype);
    const uint64_t count = std::min(WindowElements(std::max(a_bits, b_bits)), a.info.elements - first_);
    auto window = std::make_shared<Window>(Window{order_[next_], first_, count,
                                                  a_.Read(a, BytesOf(first_, a_bits), BytesOf(count, a_bits)),
                                                  b_.Read(b, BytesOf(first_, b_bits), BytesOf(count, b_bits)),
                                                  {}});
    first_ += count;
    return window;
  }

  const CheckpointDifference& diff_;
  const std::vector<size_t> order_;
  TensorReader a_, b_;
  size_t next_ = 0;
  uint64_t first_ = 0;
};

TensorDifference PairOf(const CheckpointDifference& diff, uint32_t a, uint32_t b) {
  const TensorInfo &x = diff.a.tensors[a].info, &y = diff.b.tensors[b].info;
  TensorDifference pair;
  pair.a = a, pair.b = b;
  pair.same_shape = x.shape == y.shape;
  pair.same_dtype = x.dtype == y.dtype;
  pair.elements.has_distances = IsLaneType(x.dtype) && IsLaneType(y.dtype);
  pair.compared = pair.same_shape && (pair.same_dtype || pair.elements.has_distances);
  pair.elements.elements = x.elements;
  return pair;
}

void MatchTensors(CheckpointDifference* diff) {
  for (uint32_t a = 0; a < diff->a.tensors.size(); ++a) {
    const std::string& name = diff->a.tensors[a].info.name;
    if (const auto b = diff->b.Find(name)) diff->tensors.push_back(PairOf(*diff, a, *b));
    else diff->only_in_a.push_back(name);
  }
  for (const CheckpointTensor& tensor : diff->b.tensors)
    if (!diff->a.Find(tensor.info.name)) diff->only_in_b.push_back(tensor.info.name);
}

// The order in which pairs are read: that of a's files, or of b's where only b comes as a stream.
std::vector<size_t> OrderOfReading(const CheckpointDifference& diff) {
  std::vector<size_t> order(diff.tensors.size());
  std::iota(order.begin(), order.end(), size_t{0});
  if (!diff.b.HasStream()) return order;
  const auto comes_first_in_b = [&](size_t x, size_t y) { return diff.tensors[x].b < diff.tensors[y].b; };
  if (!diff.a.HasStream()) {
    std::sort(order.begin(), order.end(), comes_first_in_b);
    return order;
  }
  const auto early = std::is_sorted_until(order.begin(), order.end(), comes_first_in_b);
  if (early == order.end()) return order;
  throw Error(ErrorCode::kUsage, "two streams are compared in one order, and this one has other tensors in front of it")
      .Path(diff.b.reference)
      .Tensor(diff.b.tensors[diff.tensors[*early].b].info.name)
      .Hint("save one of them to a file, whose tensors are found in any order; of a .zst, braid cat makes one");
}

void Compare(const CheckpointDifference& diff, Window* window) {
  window->a.Load(), window->b.Load();
  const TensorDifference& pair = diff.tensors[window->pair];
  window->found = CompareElements(diff.a.tensors[pair.a].info.dtype, window->a.data(),
                                  diff.b.tensors[pair.b].info.dtype, window->b.data(), window->count);
}

void AddUp(const Window& window, CheckpointDifference* diff) {
  TensorDifference& pair = diff->tensors[window.pair];
  Add(window.found, &pair.elements);
  diff->bytes_read += window.a.bytes() + window.b.bytes();
  if (window.first + window.count < pair.elements.elements) return;
  window.a.CheckUnchanged();
  window.b.CheckUnchanged();
}

}  // namespace

CheckpointDifference Diff(const std::string& a, const std::string& b) {
  CheckpointDifference diff;
  diff.a = OpenCheckpointForReading(a);
  diff.b = OpenCheckpointForReading(b);
  MatchTensors(&diff);

  Source source(diff, OrderOfReading(diff));
  const auto read = [&](tbb::flow_control& control) {
    WindowPtr window = source.Next();
    if (window == nullptr) control.stop();
    return window;
  };
  const auto compare = [&](WindowPtr window) {
    Compare(diff, window.get());
    return window;
  };
  const auto add_up = [&](const WindowPtr& window) { AddUp(*window, &diff); };
  CheckThreads(static_cast<size_t>(DefaultThreads()));
  tbb::parallel_pipeline(WindowsInFlight(),
                         tbb::make_filter<void, WindowPtr>(tbb::filter_mode::serial_in_order, read) &
                             tbb::make_filter<WindowPtr, WindowPtr>(tbb::filter_mode::parallel, compare) &
                             tbb::make_filter<WindowPtr, void>(tbb::filter_mode::serial_in_order, add_up));
  source.Finish();

  diff.differing = static_cast<uint64_t>(std::count_if(diff.tensors.begin(), diff.tensors.end(),
                                                       [](const TensorDifference& t) { return !t.identical(); }));
  return diff;
}

}  // namespace braid
