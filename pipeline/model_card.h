// The README.md of a merged checkpoint: metadata that the Hugging Face Hub reads as a merge, and for people the
// method, the models, and the recipe. The same merge gives the same text.
#pragma once

#include <string>

#include "pipeline/plan.h"

namespace braid {

std::string ModelCard(const Plan& plan, const std::string& title);

}  // namespace braid
