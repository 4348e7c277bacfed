// The checkpoints of a plan, lent to that of one of its spilled stages: there is one catalogue of each.
#pragma once

#include "pipeline/plan.h"

namespace braid {

class LentCheckpoints {
 public:
  LentCheckpoints(Plan* from, Plan* to);
  ~LentCheckpoints();
  LentCheckpoints(const LentCheckpoints&) = delete;

 private:
  Plan &from_, &to_;
};

}  // namespace braid
