#include "tools/kernels/frames.h"

#include <benchmark/benchmark.h>
#include <zstd.h>

#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "io/frame_encoder.h"
#include "ops/byte_planes.h"
#include "ops/kernels.h"
#include "tools/kernels/data.h"

namespace braid::bench {
namespace {

using Bytes = std::vector<std::byte>;

struct Data {
  std::string name;
  DType type;
  bool trimmed;   // to a density of 0.2
};

Bytes MakeData(const Data& data) {
  const size_t n = kFrameBytes / static_cast<size_t>(LaneBytes(data.type));
  const Operand source(data.trimmed ? Source{What::kDelta} : Source{What::kBase, data.type}, n);
  Bytes bytes(kFrameBytes);
  if (!data.trimmed) {
    std::memcpy(bytes.data(), source.data(), bytes.size());
    return bytes;
  }
  std::vector<float> lanes(n + kLanePadding);
  std::memcpy(lanes.data(), source.data(), n * sizeof(float));
  const uint32_t key = ThresholdOf(0, DType::kBF16).key;
  for (float& lane : lanes) {
    uint32_t bits;
    std::memcpy(&bits, &lane, sizeof bits);
    if ((bits & 0x7fffffff) < key) lane = 0;
  }
  NonFinite counts;
  EncodeLanes(data.type, lanes.data(), n, bytes.data(), &counts);
  return bytes;
}

// A way to compress a frame and to get it back.
struct Codec {
  std::function<size_t(const Bytes& plain, Bytes* compressed)> in;
  std::function<void(const Bytes& compressed, size_t bytes, Bytes* plain)> out;
};

Codec Ours(Compression compression, DType type) {
  struct State {
    explicit State(Compression c) : encoder(c) {}
    FrameEncoder encoder;
    EncodedFrame encoded;
    ZSTD_DCtx* decoder = ZSTD_createDCtx();   // until the program ends
    Bytes planes = Bytes(2 * kFrameBytes);   // and marks
  };
  const auto state = std::make_shared<State>(compression);
  const PlaneSplit split = compression == Compression::kPlanes ? SplitOf(type) : PlaneSplit::kNone;
  const ShardFrame frame{.bytes = kFrameBytes, .split = split};
  return {[=](const Bytes& plain, Bytes* compressed) {
            state->encoded = state->encoder.Encode(frame, plain.data(), compressed->data());
            return state->encoded.bytes;
          },
          [=](const Bytes& compressed, size_t, Bytes* plain) {
            std::byte* const content = frame.split == PlaneSplit::kNone ? plain->data() : state->planes.data();
            size_t from = 0, to = 0;
            for (const SeekEntry& entry : state->encoded.Entries()) {
              ZSTD_decompressDCtx(state->decoder, content + to, entry.content, compressed.data() + from,
                                  entry.compressed);
              from += entry.compressed, to += entry.content;
            }
            const size_t n = kFrameBytes / PlanesOf(frame.split);
            if (frame.split == PlaneSplit::kNone) return;
            const size_t marked = state->encoded.entries[1].content;
            JoinPlanes(frame.split, content, n, content + MarkBytes(n), marked, 0, n, plain->data());
          }};
}

Codec Zstd(int level) {
  ZSTD_CCtx* const encoder = ZSTD_createCCtx();   // until the program ends
  ZSTD_DCtx* const decoder = ZSTD_createDCtx();
  return {[=](const Bytes& plain, Bytes* compressed) {
            return ZSTD_compressCCtx(encoder, compressed->data(), compressed->size(), plain.data(), plain.size(),
                                     level);
          },
          [=](const Bytes& compressed, size_t bytes, Bytes* plain) {
            ZSTD_decompressDCtx(decoder, plain->data(), plain->size(), compressed.data(), bytes);
          }};
}

void Measure(benchmark::State& state, const Data& data, const std::function<Codec()>& make, bool in) {
  const Codec codec = make();
  const Bytes plain = MakeData(data);
  Bytes compressed(FrameEncoder::MostBytes(kFrameBytes)), back(kFrameBytes);
  const size_t bytes = codec.in(plain, &compressed);
  codec.out(compressed, bytes, &back);
  if (back != plain) state.SkipWithError("it does not come back");
  for (auto _ : state) {
    if (in) codec.in(plain, &compressed);
    else codec.out(compressed, bytes, &back);
    benchmark::ClobberMemory();
  }
  using benchmark::Counter;
  state.counters["bytes"] = Counter(static_cast<double>(kFrameBytes), Counter::kIsIterationInvariantRate);
  state.counters["percent"] = 100.0 * static_cast<double>(bytes) / static_cast<double>(kFrameBytes);
}

}  // namespace

void RegisterFrames() {
  for (const Data& data : {Data{"BF16 weights", DType::kBF16, false}, Data{"BF16 trimmed", DType::kBF16, true},
                           Data{"F16 weights", DType::kF16, false}, Data{"F32 weights", DType::kF32, false}}) {
    const auto add = [&](const std::string& codec, const std::function<Codec()>& make) {
      for (const bool in : {true, false})
        benchmark::RegisterBenchmark(("Frame/" + codec + "/" + data.name + (in ? "/in" : "/out")).c_str(),
                                     [=](benchmark::State& state) { Measure(state, data, make, in); });
    };
    add("zstd", [type = data.type] { return Ours(Compression::kZstd, type); });
    add("planes", [type = data.type] { return Ours(Compression::kPlanes, type); });
    add("zstd -1", [] { return Zstd(1); });
    add("zstd -3", [] { return Zstd(3); });
  }
}

}  // namespace braid::bench
