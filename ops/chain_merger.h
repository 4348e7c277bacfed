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
// Where a stage finds something out of the whole model, all tensors are one scope. Such a stage then has one merger for
// all of them; of the others each tensor has its own, and they go through their rounds together, in which they may take
// sums only. Those without statistics are shared by tensors of equal coefficients and shape.
#pragma once

#include <cstdint>
#include <limits>
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
  uint32_t stage = 0;          // in the order of the recipe, the last one included
  uint32_t merger = 0;         // index into Chain::mergers; without these, its own index
  uint32_t coefficients = 0;   // index into Chain::coefficients
  TensorFacts tensor;          // as that stage calls it: random draws depend on it
  DType type = DType::kF32;    // which its lanes are rounded to for those that read them
  ChainInput base = {};
  std::vector<ChainInput> models = {};
};

// A tensor of the output.
struct ChainTree {
  static constexpr size_t kMostSteps = 64;   // sets of steps, and of members with statistics, are words

  std::vector<ChainStep> steps;   // each behind those that it uses; the last one makes the output
  uint32_t order = 0;             // among the tensors of its scope: quotas are handed out in it
  uint64_t unit = 0;              // what tiles are multiples of, because some step needs it; 0: reduction blocks
  uint64_t sum_blocks = 0;        // the most that a step's sums are taken in
};

// What a merger is made with.
struct ChainMaking {
  uint32_t stage = 0;
  bool whole = true;           // its statistics are of all tensors of the scope
  uint32_t coefficients = 0;   // index into Chain::coefficients
  TensorFacts scope;
};

// All of a plan's. The coefficients that a chain's merger is handed name a tree: see CoefficientsOfTree.
struct Chain {
  std::vector<Coefficients> coefficients;
  std::vector<ChainTree> trees;
  std::vector<ChainMaking> mergers = {};   // of all trees, if they are one scope: in front those of whole models

  Coefficients CoefficientsOfTree(size_t tree) const { return {.shared = {static_cast<double>(tree)}, .model = {}}; }
  const ChainTree& TreeOf(const Coefficients& c) const { return trees[static_cast<size_t>(c.shared.front())]; }
  uint64_t MemoryBytes() const;
};

// The merger of one step.
struct ChainMember {
  std::string_view name;   // of the stage, for messages; empty: none is named
  std::unique_ptr<Merger> merger;
  size_t models = 0;
  // In the order of the groups, the members of one have their rounds; of several, each has its own tensor.
  uint32_t group = 0;
  bool whole = true;
  uint64_t used = 0;       // the whole members with statistics whose results it reads, directly or not, as bits
};

// `members`: as their indices in the trees say; each in a group behind those of what it uses, the whole ones among the
// first ChainTree::kMostSteps, and alone in their groups. Others hand nothing out. `trees`: those of the scope.
// `sources`: how many each tile has. The chain must outlive the merger.
std::unique_ptr<Merger> NewChainMerger(const Chain& chain, std::vector<ChainMember> members,
                                       const std::vector<uint32_t>& trees, size_t sources);

}  // namespace braid
