// The output's vocabulary, and how every source's rows become its rows: mergekit.md 2.6.
//
// A token's row in a source is the source's own where it has the token (unless the recipe forces another). Otherwise it
// is what the recipe says; or the row of the only source that has the token; or zero where none has it; or the base's;
// or the mean over the sources that have it, in float32, in their order. Rows without a token (padding, gaps between
// ids) are the mean of all others of the source. Where mergekit crashes (a token whose id lies beyond its model's rows,
// gaps between ids) the token counts as missing, and the row as padding.
//
// Lives while the plan is made; then only row maps and the texts of tokenizer files remain.
#pragma once

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "io/tokenizer.h"
#include "pipeline/plan.h"

namespace braid {

class Vocabulary {
 public:
  // Reads the tokenizers of an opened plan's sources, decides the output's tokens, and sets plan->tokenizer. Null when
  // the recipe does not name a tokenizer. Throws Error: kMemory when plan->memory.budget cannot hold the tokenizers.
  static std::unique_ptr<const Vocabulary> Make(Plan* plan);

  // The most that planning with it occupies, what the plan keeps of it included.
  uint64_t MemoryBytes() const;

  // Whether the tensor has a row per token in every source that has it.
  bool Covers(const PlannedTensor& tensor) const;

  // Sets shape and size of a tensor that is covered, and the maps of its rows where they are not all in place. Warns of
  // one that looks like it and is not. Throws Error.
  void Align(PlannedTensor* tensor) const;

 private:
  // A source of a tensor, each checkpoint once.
  struct Source {
    uint32_t slot = 0, checkpoint = 0;
    uint64_t rows = 0;
    bool operator<(const Source& other) const {
      return std::tie(slot, checkpoint, rows) < std::tie(other.slot, other.checkpoint, other.rows);
    }
  };
  using Maps = std::vector<std::shared_ptr<const RowMap>>;   // per source

  explicit Vocabulary(Plan* plan) : plan_(*plan) {}
  // Tokens of the output beyond those of the tokenizer that it begins with.
  struct NewTokens {
    uint32_t next = 0;                // id
    std::vector<Token> tokens;
    std::vector<AddedToken> added;    // all of the output's
  };

  void ReadTokenizers();
  void Hold(uint32_t checkpoint, Tokenizer tokenizer);
  void CountTokenizers(size_t first);
  void CheckMemory() const;
  void ChooseSource();
  void ChooseTokens();
  void Unite(NewTokens* out) const;
  void AddRuleTokens(NewTokens* out) const;
  void PlanFiles();
  std::optional<uint32_t> KeptId(std::string_view token) const;
  std::vector<uint32_t> Order() const;   // of the checkpoints, the base first

  std::vector<Source> SourcesOf(const PlannedTensor& tensor) const;
  const Maps& MapsOf(const PlannedTensor& tensor, const std::vector<Source>& sources) const;
  Maps MakeMaps(const PlannedTensor& tensor, const std::vector<Source>& sources) const;
  SourceRow RowOfRule(const TokenRule& rule, const PlannedTensor& tensor, const std::vector<Source>& sources) const;
  std::optional<uint32_t> IdIn(uint32_t checkpoint, uint64_t rows, std::string_view token) const;
  void WarnOfLookalike(const PlannedTensor& tensor) const;
  const Tokenizer& Of(uint32_t checkpoint) const { return *tokenizers_[checkpoint]; }

  Plan& plan_;
  std::vector<std::shared_ptr<const Tokenizer>> tokenizers_;   // per checkpoint; the same one where they are equal
  std::vector<std::string> directories_;                       // per checkpoint, of its tokenizer's files
  std::vector<std::shared_ptr<const Tokenizer>> different_;
  std::vector<XXH128_hash_t> sums_;                            // of those that differ
  std::vector<uint64_t> embedding_rows_;                       // per checkpoint; 0: it has no embedding
  std::shared_ptr<const Tokenizer> from_, out_;                // whose files are the output's, and what becomes of it
  std::string directory_;                                      // of those files
  uint64_t from_rows_ = Tokenizer::kMostTokens;                // tokens of `from_` beyond them are left out
  uint64_t held_ = 0, most_ = 0;                               // bytes: of tokenizers; and with what reading them takes
  uint64_t rows_ = 0;                                          // of the output, padding included
  bool moves_rows_ = false;                                    // of any source
  std::map<uint32_t, const TokenRule*> rules_;                 // by id in the output
  mutable std::map<std::vector<Source>, Maps> maps_;           // the same for embedding and head
};

}  // namespace braid
