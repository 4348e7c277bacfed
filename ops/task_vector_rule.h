// How task vectors become one, once each model's entries are known to stay or go: methods.md, "GTA". They are weighted
// and either added up or, with an election of signs, merged where they agree.
#pragma once

#include <algorithm>
#include <initializer_list>

#include "ops/mergers_internal.h"

namespace braid {

class TaskVectorRule {
 public:
  // `elect`: with an election. What the method's parameters say of it for the whole recipe is taken from c.
  TaskVectorRule(const MethodInfo& method, bool elect, const Coefficients& c);

  double WeightOf(const Coefficients& c, size_t model) const { return c.model[model][weight_]; }

  // A block without lanes, factors and least keys: all entries stay. Who votes: the models with a weight that are there
  // (no tile: that have a weight); they are listed in scratch.voters, and the block's arrays are those of scratch.
  TaskVectorBlock BlockFor(const Coefficients& c, const LaneTile* tile, Scratch& scratch) const;

  bool elects() const { return elect_; }

 private:
  static double Shared(const Coefficients& c, int index, double otherwise) {
    return index < 0 ? otherwise : c.shared[static_cast<size_t>(index)];
  }

  size_t weight_;
  int lambda_, normalize_;   // indices of the parameters, -1 when the method has none
  bool elect_, by_count_, weighted_vote_;
};

// The factor that restores the l1 norm of a task vector which lost entries: 1 where either norm is below 1e-7 (mergekit
// sparsify.py), and where one is not finite, so that an infinite entry does not spoil the others.
float RescaleFactor(double norm, double kept_norm);

// Parameters of the whole family, and a method's own behind them.
std::vector<ParameterSpec> TaskVectorParameters(bool normalize, std::initializer_list<ParameterSpec> own = {});

}  // namespace braid
