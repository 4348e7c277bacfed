// The tokenizer files of the output: whose they are, and what is rewritten in them.
#pragma once

#include "io/staging.h"
#include "io/tokenizer.h"
#include "pipeline/plan.h"

namespace braid {

// Sets plan->tokenizer but for its rows. `directory`: whose tokenizer files are the output's; empty: the donor's, as
// they are. `to`: what their vocabulary `from` becomes; null where it stays. Puts the recipe's chat template in. Throws
// Error.
void PlanTokenizerFiles(Plan* plan, const std::string& directory, const Tokenizer* from, const Tokenizer* to);

// Copies the donor's side files, the tokenizer's among them if `tokenizer` says so, and writes what the plan has
// instead. Throws Error.
void WriteDonorFiles(const Plan& plan, bool tokenizer, Staging* staging);

}  // namespace braid
