// Merges whose results other merges read, as one Merger: a chain of stages over the sources that are files.
//
// Its rounds are the statistics of one stage after another, each behind those that it uses, and then the merge of the
// last. In every round the lanes of an input that is itself a stage are merged into float32 (or the type that the stage
// has), a reduction block at a time, so that nothing of it lies anywhere but in the workspace of a worker. Lanes are as
// independent of tiles as ever, and sums are taken per reduction block: the result is that of separate merges.
//
// A stage that hands out equal entries at a threshold in order of the index does so once, in the first round that
// merges it; from then on it is known where its quota ended.
//
// Where stages find something out of whole models, a run has phases: in some of them all tensors are one scope, in the
// others each is one. A stage has its rounds in one phase, which is not before that of any stage that it reads. What it
// finds (thresholds, and where its quotas end: some hundred bytes, never a histogram) is kept, and known in the phases
// to come, in which it is merged again. A stage whose quotas no round of its phase hands out has one more round at the
// end of it, which does nothing else. The last phase ends with the merge.
#pragma once

#include <compare>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "ops/merger.h"

namespace braid {

// Where lanes come from: a source of the tile, or an earlier step of the same tensor.
struct ChainInput {
  enum class Kind : uint8_t { kNone, kSource, kStep };
  Kind kind = Kind::kNone;   // kNone: takes no part
  uint32_t index = 0;
};

// What one stage makes of one tensor.
struct ChainStep {
  static constexpr uint32_t kOwn = UINT32_MAX;

  uint32_t stage = 0;          // in the order of the recipe, the last one included
  uint32_t merger = kOwn;      // index into Chain::mergers; kOwn: made with the scope, which has this tensor alone
  uint32_t coefficients = 0;   // index into Chain::coefficients
  TensorFacts tensor;          // as that stage calls it: random draws depend on it
  DType type = DType::kF32;    // which its lanes are rounded to for those that read them
  ChainInput base = {};
  std::vector<ChainInput> models = {};
};

// A tensor of the output.
struct ChainTree {
  static constexpr size_t kMostSteps = 64;   // sets of steps, and of members that have rounds, are words

  std::vector<ChainStep> steps;   // each behind those that it uses; the last one makes the output
  uint32_t order = 0;             // among all tensors: quotas of whole models are handed out in it
  uint64_t unit = 0;              // what tiles are multiples of, because some step needs it; 0: reduction blocks
  uint64_t sum_blocks = 0;        // the most that a step's sums are taken in
};

// What a merger is made with.
struct ChainMaking {
  uint32_t stage = 0;
  uint32_t phase = 0;          // in which it has its rounds; none: UINT32_MAX
  uint32_t coefficients = 0;   // index into Chain::coefficients
  TensorFacts scope;
};

// All of a plan's. The coefficients that a chain's merger is handed name a tree: see CoefficientsOfTree.
struct Chain {
  std::vector<Coefficients> coefficients;
  std::vector<ChainTree> trees;
  std::vector<bool> whole = {false};       // by phase: all tensors are one scope
  // Those that phases of whole models merge, or that have their rounds before the last phase. In front those whose
  // rounds are of whole models, at most ChainTree::kMostSteps.
  std::vector<ChainMaking> mergers = {};

  // Of each of `mergers`, rough but generous: what it is made with, and it itself, twice while it is planned.
  static constexpr uint64_t MakingBytes(size_t models) { return sizeof(ChainMaking) + 2 * (1024 + models * 256); }

  Coefficients CoefficientsOfTree(size_t tree) const { return {.shared = {static_cast<double>(tree)}, .model = {}}; }
  const ChainTree& TreeOf(const Coefficients& c) const { return trees[static_cast<size_t>(c.shared.front())]; }
  uint64_t MemoryBytes() const;
};

// Where the quota of one claim ends in the order of the index: the last piece that is granted any. Those before it have
// all that they claim, those behind it nothing.
struct QuotaEnd {
  uint64_t order = 0, first = 0;   // of the tensor; of the piece in it
  uint64_t granted = 0;            // to it
  auto operator<=>(const QuotaEnd&) const = default;
};

// A merger that has had its rounds: const from then on, also for several threads.
struct ChainFinding {
  std::shared_ptr<Merger> merger = {};   // null: it has not
  std::vector<QuotaEnd> ends = {};       // per claim, if it hands out any
};

// The merger of one step.
struct ChainMember {
  std::string_view name;   // of the stage, for messages; empty: none is named
  uint32_t making = ChainStep::kOwn;   // index into Chain::mergers
  bool now = true;         // its rounds are here; otherwise what it finds is known, or nothing asks for it
  ChainFinding finding;
  size_t models = 0;
  uint64_t used = 0;       // the members with rounds here whose results it reads, directly or not, as bits
};

// What a chain's merger is for.
struct ChainScope {
  std::vector<uint32_t> trees;
  bool whole = false;      // the members are those of Chain::mergers; otherwise those of the one tree's steps
  bool merges = true;      // in the end; otherwise its statistics are all that is wanted
  size_t sources = 0;      // how many each tile has
};

// `members`: each behind those that it uses, those with rounds here among the first ChainTree::kMostSteps. The chain
// must outlive the merger.
std::unique_ptr<Merger> NewChainMerger(const Chain& chain, std::vector<ChainMember> members, ChainScope scope);

// When all rounds of a chain's merger are over: puts what those members have found that are in Chain::mergers there.
void KeepFindings(const Merger& chain_merger, std::vector<ChainFinding>* findings);

}  // namespace braid
