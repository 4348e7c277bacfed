// The tokenizer files of the output: whose they are, and what is rewritten in them.
#pragma once

#include "io/staging.h"
#include "io/tokenizer.h"
#include "pipeline/plan.h"

namespace braid {

// Sets plan->tokenizer but for its rows. `from`: the tokenizer whose files are the output's, of which `out` is what the
// vocabulary becomes; null: the donor's stay as they are. Puts the recipe's chat template in. Throws Error.
void PlanTokenizerFiles(Plan* plan, const Tokenizer* from, const Tokenizer* out);

// Copies the donor's side files, the tokenizer's among them if `tokenizer` says so, and writes what the plan has instead.
// Throws Error.
void WriteDonorFiles(const Plan& plan, bool tokenizer, Staging* staging);

}  // namespace braid
