#include "io/sentence_piece.h"

#include <bit>
#include <cstdint>
#include <cstring>
#include <optional>

#include "io/error.h"

namespace braid {
namespace {

// The fields of a protobuf message, one after the other.
class Fields {
 public:
  enum Wire : uint32_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };
  struct Field {
    uint64_t number = 0;
    uint32_t wire = kVarint;
    std::string_view bytes;   // of kBytes, kFixed64 and kFixed32
  };

  explicit Fields(std::string_view message) : rest_(message) {}
  bool done() const { return rest_.empty(); }

  // Nothing where the message breaks off or has groups, which nobody writes any more.
  std::optional<Field> Next() {
    const auto tag = Varint();
    if (!tag || *tag >> 3 == 0) return std::nullopt;
    Field field;
    field.number = *tag >> 3, field.wire = static_cast<uint32_t>(*tag & 7);
    uint64_t size = 0;
    if (field.wire == kVarint) {
      if (!Varint()) return std::nullopt;
    } else if (field.wire == kBytes) {
      const auto length = Varint();
      if (!length) return std::nullopt;
      size = *length;
    } else if (field.wire == kFixed64 || field.wire == kFixed32) {
      size = field.wire == kFixed64 ? 8 : 4;
    } else {
      return std::nullopt;
    }
    if (size > rest_.size()) return std::nullopt;
    field.bytes = rest_.substr(0, size);
    rest_.remove_prefix(size);
    return field;
  }

 private:
  std::optional<uint64_t> Varint() {
    uint64_t value = 0;
    for (size_t i = 0; i < rest_.size() && i < 10; ++i) {
      const auto byte = static_cast<unsigned char>(rest_[i]);
      value |= static_cast<uint64_t>(byte & 0x7f) << (7 * i);
      if (byte < 0x80) {
        rest_.remove_prefix(i + 1);
        return value;
      }
    }
    return std::nullopt;
  }

  std::string_view rest_;
};

std::optional<Token> ParsePiece(std::string_view message, uint32_t id) {
  Token token;
  token.id = id;
  for (Fields fields(message); !fields.done();) {
    const auto field = fields.Next();
    if (!field) return std::nullopt;
    if (field->number == 1 && field->wire == Fields::kBytes) {
      token.text = field->bytes;
    } else if (field->number == 2 && field->wire == Fields::kFixed32) {
      float score;   // little-endian, as this machine is
      std::memcpy(&score, field->bytes.data(), sizeof(score));
      token.score = static_cast<double>(score);
    }
  }
  return token;
}

}  // namespace

static_assert(std::endian::native == std::endian::little);

std::vector<Token> ParseSentencePieces(std::string_view bytes, const std::string& path) {
  const auto fault = [&] {
    return Error(ErrorCode::kBadInput, "this is no SentencePiece model").Path(path)
        .Hint("a tokenizer.json beside it would be read instead: save_pretrained of transformers writes one");
  };
  std::vector<Token> tokens;
  for (Fields fields(bytes); !fields.done();) {
    const auto field = fields.Next();
    if (!field) throw fault();
    if (field->number != 1) continue;
    if (field->wire != Fields::kBytes || tokens.size() >= Tokenizer::kMostTokens) throw fault();
    auto token = ParsePiece(field->bytes, static_cast<uint32_t>(tokens.size()));
    if (!token) throw fault();
    tokens.push_back(std::move(*token));
  }
  if (tokens.empty()) throw fault();
  return tokens;
}

}  // namespace braid
