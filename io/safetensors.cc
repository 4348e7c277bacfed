#include "io/safetensors.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <iterator>
#include <limits>
#include <numeric>
#include <optional>
#include <set>
#include <utility>

#include "io/error.h"
#include "io/input_stream.h"
#include "io/json.h"
#include "io/json_events.h"
#include "io/os.h"

namespace braid {
namespace {

constexpr uint64_t kLengthBytes = 8;
constexpr uint64_t kMaxDimension = (uint64_t{1} << 48) - 1;  // no product with a zero hides an overflow
constexpr size_t kMaxRank = 64;
constexpr size_t kMaxNameBytes = 4096;
constexpr std::string_view kMetadataKey = "__metadata__";
constexpr std::string_view kDamaged = "the file is damaged or was written wrongly: download or save it again";

std::string Quoted(std::string_view text) {
  return text.size() <= 80 ? fmt::format("'{}'", Printable(text))
                           : "a name of " + std::to_string(text.size()) + " bytes";
}

// Collects the catalogue while the header's JSON goes by; no tree is built. `in_` says which object or list
// the walk is in.
class HeaderEvents final : public JsonEvents {
 public:
  HeaderEvents(uint64_t json_bytes, std::optional<uint64_t> file_bytes, const std::string& path)
      : JsonEvents(path, kLengthBytes),
        is_stream_(!file_bytes),
        data_offset_(kLengthBytes + json_bytes),
        data_bytes_(file_bytes.value_or(kMaxStreamBytes) - kLengthBytes - json_bytes) {}

  SafetensorsHeader header;
  uint64_t tensors_with_extra_fields = 0;
  std::string first_extra_field;

 private:
  enum class In { kNothing, kFile, kMetadata, kTensor, kShape, kOffsets, kExtra };
  enum class Field { kDType, kShape, kOffsets, kExtra };

  void OnNull() override {
    if (in_ == In::kFile && key_ == kMetadataKey) return;
    if (!InExtra()) throw Unexpected("null");
  }
  void OnBoolean(bool) override {
    if (!InExtra()) throw Unexpected("a boolean");
  }
  void OnUnsigned(uint64_t value) override {
    if (in_ == In::kShape) return AddDimension(value);
    if (in_ == In::kOffsets) return AddOffset(value);
    if (!InExtra()) throw Unexpected("a number");
  }
  void OnNegative(int64_t) override {
    if (!InExtra()) throw Unexpected("a negative number");
  }
  void OnFloat(double) override {
    if (!InExtra()) throw Unexpected("a number that is not a plain integer or too large");
  }

  void OnString(std::string& value) override {
    if (in_ == In::kMetadata) {
      if (!header.metadata.emplace(std::move(key_), std::move(value)).second)
        throw Bad("a key of '__metadata__' occurs twice");
    } else if (in_ == In::kTensor && field_ == Field::kDType) {
      std::optional<DType> type = ParseDType(value);
      if (!type)
        throw Bad(fmt::format("{} is not an element type of the safetensors format", Quoted(value)))
            .Hint("the file is damaged, or newer than this version of braid");
      tensor_.dtype = *type;
    } else if (!InExtra()) {
      throw Unexpected("a string");
    }
  }

  void OnKey(std::string& key) override {
    switch (in_) {
      case In::kFile: return StartEntry(key);
      case In::kTensor: return StartField(key);
      case In::kExtra:
        if (!extra_keys_.back().insert(std::move(key)).second)
          throw Bad("a key occurs twice in an extra field");
        return;
      default: key_ = std::move(key);
    }
  }

  void OnStartObject() override {
    if (in_ == In::kNothing) {
      in_ = In::kFile;
    } else if (in_ == In::kFile) {
      in_ = key_ == kMetadataKey ? In::kMetadata : In::kTensor;
    } else if (InExtra()) {
      EnterExtra();
    } else {
      throw Unexpected("an object");
    }
  }

  void OnStartArray() override {
    if (in_ == In::kTensor && field_ == Field::kShape) {
      in_ = In::kShape;
    } else if (in_ == In::kTensor && field_ == Field::kOffsets) {
      in_ = In::kOffsets;
    } else if (InExtra()) {
      EnterExtra();
    } else {
      throw Unexpected("a list");
    }
  }

  void OnEndArray() override { in_ == In::kExtra ? LeaveExtra() : void(in_ = In::kTensor); }
  void OnEndObject() override {
    if (in_ == In::kExtra) return LeaveExtra();
    if (in_ == In::kTensor) FinishTensor();
    in_ = in_ == In::kFile ? In::kNothing : In::kFile;
  }

  bool InExtra() const { return in_ == In::kExtra || (in_ == In::kTensor && field_ == Field::kExtra); }
  void EnterExtra() { in_ = In::kExtra, extra_keys_.emplace_back(); }
  void LeaveExtra() {
    extra_keys_.pop_back();
    if (extra_keys_.size() == 1) in_ = In::kTensor;
  }

  void StartEntry(std::string& key) {
    key_ = std::move(key);
    tensor_ = {};
    if (key_ == kMetadataKey) {
      if (std::exchange(has_metadata_, true)) throw Bad("'__metadata__' occurs twice");
      return;
    }
    if (key_.size() > kMaxNameBytes)
      throw Bad(fmt::format("a tensor has a name of {} bytes; {} is the limit", key_.size(), kMaxNameBytes));
    tensor_.name = key_;
    has_ = {};
    offsets_.clear();
    extra_keys_.assign(1, {});
  }

  void StartField(std::string& key) {
    constexpr std::array<std::string_view, 3> kFields{"dtype", "shape", "data_offsets"};
    auto known = std::find(kFields.begin(), kFields.end(), key);
    field_ = static_cast<Field>(known - kFields.begin());
    if (field_ == Field::kExtra) {
      if (extra_keys_[0].empty() && ++tensors_with_extra_fields == 1) first_extra_field = key;
      if (!extra_keys_[0].insert(std::move(key)).second) throw Bad("an extra field occurs twice");
    } else if (std::exchange(has_[static_cast<size_t>(field_)], true)) {
      throw Bad(fmt::format("'{}' occurs twice", key));
    }
  }

  void AddDimension(uint64_t value) {
    if (value > kMaxDimension) throw Bad(fmt::format("a dimension of {} is 2^48 or more", value));
    if (tensor_.shape.size() == kMaxRank)
      throw Bad(fmt::format("the shape has more than {} dimensions", kMaxRank));
    tensor_.shape.push_back(value);
  }

  void AddOffset(uint64_t value) {
    if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))
      throw Bad(fmt::format("the data offset {} is 2^63 or more", value));
    if (offsets_.size() == 2) throw Bad("'data_offsets' has more than two numbers");
    offsets_.push_back(value);
  }

  void FinishTensor() {
    for (size_t i = 0; i < has_.size(); ++i)
      if (!has_[i])
        throw Bad(fmt::format("'{}' is missing", std::array{"dtype", "shape", "data_offsets"}[i]));
    if (offsets_.size() != 2) throw Bad("'data_offsets' must have two numbers, begin and end");
    auto [begin, end] = std::array{offsets_[0], offsets_[1]};
    if (end < begin) throw Bad(fmt::format("data_offsets [{}, {}] end before they begin", begin, end));
    CountElements();
    if (end - begin != tensor_.bytes)
      throw Bad(fmt::format("data_offsets [{}, {}] span {} bytes, but {} of shape {} needs {}", begin, end,
                            end - begin, DTypeName(tensor_.dtype), ShapeText(tensor_.shape), tensor_.bytes));
    if (end > data_bytes_ && is_stream_)
      throw Bad(fmt::format("its data end at byte {} of the stream; {} are the limit", data_offset_ + end,
                            kMaxStreamBytes));
    if (end > data_bytes_)
      throw Bad(fmt::format("its data end at byte {} of the file, which has only {} bytes",
                            data_offset_ + end, data_offset_ + data_bytes_))
          .Hint("the file is truncated: copy or download it again");
    tensor_.offset = data_offset_ + begin;
    tensor_.shape.shrink_to_fit();
    header.tensors.push_back(std::move(tensor_));
  }

  void CountElements() {
    bool empty = std::find(tensor_.shape.begin(), tensor_.shape.end(), 0u) != tensor_.shape.end();
    uint64_t elements = empty ? 0 : 1, bits = 0;
    bool overflow = false;
    for (uint64_t dimension : tensor_.shape)
      overflow |= __builtin_mul_overflow(elements, dimension, &elements);
    overflow |= __builtin_mul_overflow(elements, static_cast<uint64_t>(DTypeBits(tensor_.dtype)), &bits);
    if (overflow) throw Bad(fmt::format("the shape {} has too many elements", ShapeText(tensor_.shape)));
    if (bits % 8 != 0)
      throw Bad(fmt::format("{} elements of {} do not fill whole bytes", elements, DTypeName(tensor_.dtype)));
    tensor_.elements = elements;
    tensor_.bytes = bits / 8;
  }

  Error Bad(std::string message) const {
    Error error = Fault(std::move(message));
    error.Tensor(tensor_.name).Hint(std::string(kDamaged));
    return error;
  }

  Error Unexpected(std::string_view found) const {
    auto expected = [&]() -> std::string {
      switch (in_) {
        case In::kNothing: return "the header must be a JSON object";
        case In::kFile:
          return key_ == kMetadataKey ? "'__metadata__' must be an object"
                                      : "a tensor's entry must be an object";
        case In::kMetadata: return "the values of '__metadata__' must be strings";
        case In::kShape: return "'shape' must be a list of whole numbers";
        case In::kOffsets: return "'data_offsets' must be a list of two whole numbers";
        default: break;
      }
      if (field_ == Field::kDType) return "'dtype' must be a string";
      return field_ == Field::kShape ? "'shape' must be a list" : "'data_offsets' must be a list";
    };
    return Bad(fmt::format("{}; there is {} here", expected(), found));
  }

  bool is_stream_;
  uint64_t data_offset_, data_bytes_;
  In in_ = In::kNothing;
  Field field_ = Field::kDType;
  std::string key_;
  bool has_metadata_ = false;
  TensorInfo tensor_;          // the one being read
  std::array<bool, 3> has_{};  // its fields, in the order of Field
  std::vector<uint64_t> offsets_;
  std::vector<std::set<std::string>> extra_keys_;  // of the tensor, then of each object or list within
};

// Bytes between tensors would be a place to hide another file, and overlaps a way to claim more than there
// is. Returns where the last tensor ends.
uint64_t CheckLayout(const SafetensorsHeader& header, std::optional<uint64_t> file_bytes, const std::string& path) {
  uint64_t expected = header.data_offset;
  for (const TensorInfo& tensor : header.tensors) {
    if (tensor.offset != expected)
      throw Error(ErrorCode::kBadInput,
                  tensor.offset > expected
                      ? fmt::format("there is a hole of {} bytes before its data", tensor.offset - expected)
                      : "its data overlap those of another tensor")
          .Path(path)
          .Tensor(tensor.name)
          .Offset(tensor.offset)
          .Hint(std::string(kDamaged));
    expected += tensor.bytes;
  }
  if (file_bytes && expected != *file_bytes)
    throw Error(ErrorCode::kBadInput, fmt::format("{} bytes follow the last tensor", *file_bytes - expected))
        .Path(path)
        .Offset(expected)
        .Hint(std::string(kDamaged));
  return expected;
}

void CheckNames(const std::vector<TensorInfo>& tensors, const std::string& path) {
  std::vector<uint32_t> order(tensors.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(),
            [&](uint32_t a, uint32_t b) { return tensors[a].name < tensors[b].name; });
  for (size_t i = 1; i < order.size(); ++i)
    if (tensors[order[i]].name == tensors[order[i - 1]].name)
      throw Error(ErrorCode::kBadInput, "the header lists this tensor twice")
          .Path(path)
          .Tensor(tensors[order[i]].name)
          .Hint(std::string(kDamaged));
}

// What a file that is no safetensors file is, if its first bytes tell.
std::string_view WhatItIs(std::string_view start) {
  if (start.starts_with("version "))
    return "this is a Git LFS pointer, not the file itself: run `git lfs pull`";
  if (start.starts_with("GGUF")) return "this is a GGUF file; use the model's safetensors files";
  if (start.starts_with("PK\x03\x04"))
    return "this is a zip archive, probably a PyTorch checkpoint; use safetensors";
  if (start.starts_with("braid pl"))
    return "these are the byte planes of a safetensors file: what `braid cat FILE` makes of them is one";
  if (start.starts_with("<"))
    return "this is a web page, probably saved in place of a download; download it again";
  return kDamaged;
}

// What the first bytes say. Throws Error.
uint64_t HeaderLength(const std::array<char, kLengthBytes>& start, const std::string& path) {
  uint64_t length = 0;
  for (size_t i = kLengthBytes; i-- > 0;) length = length << 8 | static_cast<unsigned char>(start[i]);
  if (length <= kMaxHeaderBytes) return length;
  throw Error(ErrorCode::kBadInput,
              fmt::format("this is not a safetensors file: its header would have {} bytes, and {} are the limit",
                          length, kMaxHeaderBytes))
      .Path(path)
      .Offset(0)
      .Hint(std::string(WhatItIs({start.data(), start.size()})));
}

// Of a stream that goes on, as far as its header says. Throws Error.
void ReadFully(InputStream* stream, char* to, size_t bytes) {
  const size_t got = stream->Read(reinterpret_cast<std::byte*>(to), bytes);
  if (got == bytes) return;
  if (stream->position() == 0)
    throw Error(ErrorCode::kBadInput, "nothing comes out of it: it ends before its first byte")
        .Path(stream->name())
        .Hint("the program that writes it has failed, or there is none");
  throw Error(ErrorCode::kBadInput, fmt::format("it ends within its header, {} bytes are missing", bytes - got))
      .Path(stream->name())
      .Offset(stream->position())
      .Hint("the program that writes it has failed, or this is not a safetensors file");
}

}  // namespace

std::string ShapeText(const std::vector<uint64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

SafetensorsHeader ParseSafetensorsHeader(std::string_view json, std::optional<uint64_t> file_bytes,
                                         const std::string& path) {
  auto bad = [&](uint64_t offset, std::string message) {
    Error error(ErrorCode::kBadInput, std::move(message));
    error.Path(path).Offset(offset).Hint(std::string(kDamaged));
    return error;
  };
  if (json.size() > kMaxHeaderBytes)
    throw bad(0, fmt::format("the header says {} bytes; the format allows {}", json.size(), kMaxHeaderBytes));
  if (file_bytes && (*file_bytes < kLengthBytes || json.size() > *file_bytes - kLengthBytes))
    throw bad(0, fmt::format("the header says {} bytes, the file has {}", json.size(), *file_bytes));
  if (!json.starts_with('{')) throw bad(kLengthBytes, "the header does not begin with '{'");
  if (size_t nul = json.find('\0'); nul != std::string_view::npos)
    throw bad(kLengthBytes + nul, "there is a NUL byte in the header")
        .Hint("headers are padded with spaces, not with NUL: save the file again");

  HeaderEvents events(json.size(), file_bytes, path);
  events.Walk(json);
  SafetensorsHeader header = std::move(events.header);
  header.data_offset = kLengthBytes + json.size();
  header.sum = XXH3_128bits(json.data(), json.size());
  header.tensors.shrink_to_fit();

  // Empty tensors come first among those that share an offset.
  auto by_place = [](const TensorInfo& a, const TensorInfo& b) {
    return std::pair(a.offset, a.bytes) < std::pair(b.offset, b.bytes);
  };
  if (!std::is_sorted(header.tensors.begin(), header.tensors.end(), by_place))
    std::stable_sort(header.tensors.begin(), header.tensors.end(), by_place);
  header.file_bytes = CheckLayout(header, file_bytes, path);
  CheckNames(header.tensors, path);

  if (std::string_view padding = json.substr(json.find_last_of('}') + 1); padding.find('\n') != padding.npos)
    header.warnings.push_back("the header ends with a newline, which other readers may refuse");
  if (events.tensors_with_extra_fields > 0)
    header.warnings.push_back(
        fmt::format("{} tensors have fields unknown to the format (such as {}), which are ignored",
                    events.tensors_with_extra_fields, Quoted(events.first_extra_field)));
  return header;
}

SafetensorsHeader ReadSafetensorsHeader(int fd, uint64_t file_bytes, const std::string& path) {
  if (file_bytes < kLengthBytes)
    throw Error(ErrorCode::kBadInput, fmt::format("{} bytes are too few for a safetensors file", file_bytes))
        .Path(path)
        .Offset(file_bytes)
        .Hint("it is truncated: copy or download it again");
  std::array<char, kLengthBytes> start;
  ReadExactly(fd, start.data(), start.size(), 0, path);
  const uint64_t length = HeaderLength(start, path);
  if (length > file_bytes - kLengthBytes)
    throw Error(ErrorCode::kBadInput, fmt::format("the header has {} bytes, the file has {} left", length,
                                                  file_bytes - kLengthBytes))
        .Path(path)
        .Offset(file_bytes)
        .Hint("it is truncated: copy or download it again");
  std::string json(length, '\0');
  ReadExactly(fd, json.data(), json.size(), kLengthBytes, path);
  return ParseSafetensorsHeader(json, file_bytes, path);
}

SafetensorsHeader ReadSafetensorsHeader(InputStream* stream, std::string* bytes) {
  constexpr size_t kStep = 1 << 20;   // what a length says is believed as it comes true
  std::array<char, kLengthBytes> start;
  ReadFully(stream, start.data(), start.size());
  const uint64_t length = HeaderLength(start, stream->name());
  bytes->assign(start.data(), start.size());
  while (bytes->size() < kLengthBytes + length) {
    const size_t had = bytes->size(), more = std::min<size_t>(kStep, kLengthBytes + length - had);
    bytes->resize(had + more);
    ReadFully(stream, bytes->data() + had, more);
  }
  return ParseSafetensorsHeader(std::string_view(*bytes).substr(kLengthBytes), std::nullopt, stream->name());
}

std::string MakeSafetensorsHeader(const std::vector<TensorInfo>& tensors,
                                  const std::map<std::string, std::string>& metadata, uint64_t alignment) {
  std::string out(kLengthBytes, '\0');
  out += '{';
  if (!metadata.empty()) out += fmt::format("\"{}\":{}", kMetadataKey, Json(metadata).dump());
  uint64_t begin = 0;
  for (const TensorInfo& tensor : tensors) {
    if (out.back() != '{') out += ',';
    uint64_t end = begin + tensor.bytes;
    fmt::format_to(std::back_inserter(out), "{}:{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[{},{}]}}",
                   JsonString(tensor.name), DTypeName(tensor.dtype), fmt::join(tensor.shape, ","), begin, end);
    begin = end;
  }
  out += '}';
  if (uint64_t beyond = out.size() % alignment; beyond != 0) out.append(alignment - beyond, ' ');
  uint64_t length = out.size() - kLengthBytes;
  if (length > kMaxHeaderBytes)
    throw Error(ErrorCode::kUsage,
                fmt::format("one shard would need a header of {} bytes for its {} tensors; {} are "
                            "the limit",
                            length, tensors.size(), kMaxHeaderBytes))
        .Hint("use a smaller --shard-size");
  for (size_t i = 0; i < kLengthBytes; ++i) out[i] = static_cast<char>(length >> (8 * i) & 0xff);
  return out;
}

}  // namespace braid
