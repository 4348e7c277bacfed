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

#include <map>
#include <memory>
#include <tuple>
#include <vector>

#include "io/tokenizer.h"
#include "pipeline/plan.h"

namespace braid {

class Vocabulary {
 public:
  // Reads the tokenizers of an opened plan's sources, decides the output's tokens, and sets plan->tokenizer. Null when
  // the recipe does not name a tokenizer. Throws Error.
  static std::unique_ptr<const Vocabulary> Make(Plan* plan);

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
  void ReadTokenizers();
  void ChooseTokens();
  void Unite(std::vector<Token>* tokens, std::vector<AddedToken>* added) const;
  void AddRuleTokens(std::vector<Token>* tokens, std::vector<AddedToken>* added) const;
  void PlanFiles();
  Tokenizer TokenizerOf(const std::string& reference) const;
  std::vector<uint32_t> Order() const;   // of the checkpoints, the base first

  std::vector<Source> SourcesOf(const PlannedTensor& tensor) const;
  const Maps& MapsOf(const PlannedTensor& tensor, const std::vector<Source>& sources) const;
  Maps MakeMaps(const PlannedTensor& tensor, const std::vector<Source>& sources) const;
  SourceRow RowOfRule(const TokenRule& rule, const PlannedTensor& tensor, const std::vector<Source>& sources) const;
  std::optional<uint32_t> IdIn(uint32_t checkpoint, uint64_t rows, std::string_view token) const;
  void WarnOfLookalike(const PlannedTensor& tensor) const;
  const Tokenizer& Of(uint32_t checkpoint) const { return *tokenizers_[checkpoint]; }

  Plan& plan_;
  std::vector<std::shared_ptr<const Tokenizer>> tokenizers_;   // per checkpoint
  std::vector<uint64_t> embedding_rows_;                       // per checkpoint; 0: it has no embedding
  Tokenizer from_, out_;                                       // whose files are the output's, and what becomes of it
  uint64_t rows_ = 0;                                          // of the output, padding included
  bool moves_rows_ = false;                                    // of any source
  std::map<uint32_t, const TokenRule*> rules_;                 // by id in the output
  mutable std::map<std::vector<Source>, Maps> maps_;           // the same for embedding and head
};

}  // namespace braid
