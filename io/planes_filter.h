// A Boost.Iostreams input filter for the content of compressed shards, behind a filter that decompresses: what came out
// of a planes file (shard_frames.h) leaves as the plain shard, anything else as it came.
//
//   namespace bio = boost::iostreams;
//   auto plain = bio::compose(PlanesFilter(name), bio::compose(ZstdFilter(name), device));
//   bio::read(plain, to, n);   // -1: the end
//
// A content that ends too early, or goes on behind the last tensor, is Error(kBadInput).
// Copies share one state; for one thread.
#pragma once

#include <boost/iostreams/categories.hpp>
#include <boost/iostreams/read.hpp>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <ios>
#include <memory>
#include <string>

namespace braid {

class PlanesFilter {
 public:
  using char_type = char;
  using category = boost::iostreams::multichar_input_filter_tag;

  // `name`: of the stream, for errors.
  explicit PlanesFilter(std::string name);

  template <typename Source>
  std::streamsize read(Source& source, char* to, std::streamsize bytes) {
    return Give([&](char* s, std::streamsize n) { return boost::iostreams::read(source, s, n); }, to, bytes);
  }

  // What it occupies once the header has been read and given: three frames, of a planes file.
  uint64_t MemoryBytes() const;

 private:
  using Refill = std::function<std::streamsize(char*, std::streamsize)>;
  std::streamsize Give(const Refill& refill, char* to, std::streamsize bytes);

  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace braid
