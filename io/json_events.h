// JSON as a stream of events, for texts too large for a tree. nlohmann's SAX parser underneath (UTF-8,
// escapes and lone surrogates are checked there), plus what it lets through: depth, NUL bytes, a byte order
// mark; and the position of every event, so that an error can say where.
//
// Duplicate keys are the business of the derived class: only it knows what it keeps.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "io/error.h"

namespace braid {

inline constexpr int kMaxJsonDepth = 64;

class JsonEvents : private nlohmann::json_sax<nlohmann::json> {
 public:
  // Walks the whole text, which must be one JSON value. Throws Error(kBadInput), and whatever an event
  // throws.
  void Walk(std::string_view text);

 protected:
  // `path` and `file_offset` (of the text's first byte) are for messages.
  explicit JsonEvents(std::string path, uint64_t file_offset = 0, int max_depth = kMaxJsonDepth)
      : path_(std::move(path)), file_offset_(file_offset), max_depth_(max_depth) {}
  ~JsonEvents() = default;

  // The events, in the order of the text. Strings may be moved from.
  virtual void OnNull() = 0;
  virtual void OnBoolean(bool value) = 0;
  virtual void OnUnsigned(uint64_t value) = 0;  // digits only: "12", not "-0", "12.0" or "1e3"
  virtual void OnNegative(int64_t value) = 0;
  virtual void OnFloat(double value) = 0;  // also integers of 2^64 and more
  virtual void OnString(std::string& value) = 0;
  virtual void OnKey(std::string& key) = 0;
  virtual void OnStartObject() = 0;
  virtual void OnEndObject() = 0;
  virtual void OnStartArray() = 0;
  virtual void OnEndArray() = 0;

  // An error at the place the walk has reached.
  Error Fault(std::string message) const { return FaultAt(position_, std::move(message)); }
  Error FaultAt(size_t position, std::string message) const;

  // Where a byte of the text lies in the file; for texts that are not quite the file's.
  virtual uint64_t FileOffset(size_t position) const { return file_offset_ + position; }

 private:
  void Descend();

  bool null() final { return OnNull(), true; }
  bool boolean(bool value) final { return OnBoolean(value), true; }
  bool number_integer(int64_t value) final { return OnNegative(value), true; }
  bool number_unsigned(uint64_t value) final { return OnUnsigned(value), true; }
  bool number_float(double value, const std::string&) final { return OnFloat(value), true; }
  bool string(std::string& value) final { return OnString(value), true; }
  bool binary(binary_t&) final { return false; }  // does not occur in JSON text
  bool key(std::string& value) final { return OnKey(value), true; }
  bool start_object(std::size_t) final { return Descend(), OnStartObject(), true; }
  bool start_array(std::size_t) final { return Descend(), OnStartArray(), true; }
  bool end_object() final { return --depth_, OnEndObject(), true; }
  bool end_array() final { return --depth_, OnEndArray(), true; }
  bool parse_error(std::size_t position, const std::string& token,
                   const nlohmann::detail::exception& error) final;

  std::string path_;
  uint64_t file_offset_;
  int max_depth_;
  int depth_ = 0;
  size_t size_ = 0;
  size_t position_ = 0;  // bytes read so far
};

}  // namespace braid
