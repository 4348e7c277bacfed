// Which tensors come out of a recipe with slices or modules, in which order, and from which layers of which sources.
//
// Layers of the output are numbered anew, each stack for itself. A tensor before the layers (embeddings) is merged from
// the sources of the first slice with its parameters, one behind them (final norm, head) from those of the last; every
// tensor that a source of them has comes out. Used while a plan is made, by one thread.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "pipeline/layer_names.h"
#include "pipeline/plan.h"

namespace braid {

// What is merged with each other: the models of a recipe, or the sources of a slice.
struct SourceGroup {
  struct Source {
    uint32_t checkpoint = 0;             // index into Plan::checkpoints
    const RecipeModel* model = nullptr;  // of one of `models`, null: nobody; see TensorPlanner::Widened
  };
  std::optional<Source> base;            // that the models are compared with
  std::vector<Source> models;
  std::vector<const Settings*> settings; // between a model's own and the recipe's

  const Source& leader() const { return base ? *base : models.front(); }
};

// A tensor of the output, before its sources are found.
struct WantedTensor {
  std::string name;
  std::vector<const SourceGroup*> groups; // the first of which has it lends it
  double position = 0;                    // t of gradients
  double depth = 0;                       // the same among all layers of the output: where layer_scale sees it
  std::optional<uint64_t> layer = {};     // place among the layers of the slice; the sources have other numbers there
  uint32_t guess = 0;                     // where the leader of the first group may have it

  // Its name in a source.
  std::string NameIn(const SourceGroup::Source& source) const;
};

// The rearranged layers of one stack.
struct StackedLayers {
  struct Origin {
    uint32_t checkpoint = 0;
    uint64_t layer = 0;
  };
  std::string stack;            // "model.layers."
  std::vector<Origin> layers;   // of the output, in order; where the leader of their slice has them
  Location where;
};

class SlicedModel {
 public:
  // The plan's checkpoints are open and stay where they are. Throws RecipeError for layers that are not there, or when
  // the names of the tensors do not tell which layers are meant.
  explicit SlicedModel(const Plan& plan);
  ~SlicedModel();

  // In the order of the output.
  void ForEach(const std::function<void(WantedTensor)>& visit) const;
  std::vector<StackedLayers> Stacks() const;
  // The checkpoints that are models, not bases, of any slice: each once, in the order of the recipe.
  std::vector<uint32_t> Models() const;
  // How many layers a stack has in a checkpoint.
  uint64_t LayersOf(const Checkpoint& checkpoint, std::string_view stack) const;
  // What mergekit does differently with this recipe.
  std::vector<RecipeWarning> Differences() const;

 private:
  struct Module;

  void CheckModules() const;
  void ChooseStacks(Module* module) const;
  void CheckRanges(const Module& module) const;
  void CheckRange(const SourceGroup::Source& source, std::string_view stack) const;
  void VisitStack(const Module& module, const std::string& stack, const std::function<void(WantedTensor)>& visit) const;
  // Layer `layer` of a slice, which is layer `output` of `all`.
  void VisitLayer(const SourceGroup& group, std::string_view stack, uint64_t layer, uint64_t output, uint64_t all,
                  const std::function<void(WantedTensor)>& visit) const;
  const LayerStacks& StacksOf(uint32_t checkpoint) const { return *stacks_.at(checkpoint); }
  const Checkpoint& CheckpointOf(const SourceGroup::Source& source) const {
    return plan_.checkpoints[source.checkpoint];
  }
  const Module& ModuleOf(std::string_view tensor) const;

  const Plan& plan_;
  std::map<uint32_t, std::unique_ptr<LayerStacks>> stacks_;   // per checkpoint that is a source
  std::vector<std::unique_ptr<Module>> modules_;
};

}  // namespace braid
