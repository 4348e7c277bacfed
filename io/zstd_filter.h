// A zstd stream as a Boost.Iostreams input filter: whatever number of frames, skippable ones passed over, each checked
// against the checksum that it has. Boost's own filter takes a stream that is cut off for one that has ended.
//
//   auto chain = boost::iostreams::compose(ZstdFilter(name), device);
//   boost::iostreams::read(chain, to, n);   // -1: the end, behind a whole frame
//
// What is no zstd, or ends within a frame, is Error(kBadInput) naming the frame. Copies share one decoder; for one
// thread.
#pragma once

#include <boost/iostreams/categories.hpp>
#include <boost/iostreams/read.hpp>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <ios>
#include <memory>
#include <string>
#include <string_view>

namespace braid {

class ZstdFilter {
 public:
  using char_type = char;
  using category = boost::iostreams::multichar_input_filter_tag;

  // The most that a frame may look back, as in zstd itself; frames that come after the first may look back as far as
  // that one, or 8 MiB, so that what the decoder takes is known when the first has begun.
  static constexpr int kMostWindowLog = 27, kUsualWindowLog = 23;

  // `name`: of the stream, for errors.
  explicit ZstdFilter(std::string name);

  template <typename Source>
  std::streamsize read(Source& source, char* to, std::streamsize bytes) {
    return Decode([&](char* s, std::streamsize n) { return boost::iostreams::read(source, s, n); }, to, bytes);
  }

  // What it occupies, once something has been read; before, the most.
  uint64_t MemoryBytes() const;

  // Whether a file of which these are the first bytes, four at least, is a zstd stream.
  static bool Recognises(std::string_view start);

 private:
  using Refill = std::function<std::streamsize(char*, std::streamsize)>;
  std::streamsize Decode(const Refill& refill, char* to, std::streamsize bytes);

  struct Decoder;
  std::shared_ptr<Decoder> decoder_;
};

}  // namespace braid
