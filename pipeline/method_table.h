// The documentation of the merge methods, from their declarations alone: `braid methods`.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "io/json.h"
#include "ops/method.h"

namespace braid {

// "required", "optional", "first", "source", "unused": what the base is to a method.
std::string_view BaseUseName(BaseUse use);

// "2", "1 or more", "2 to 4": how many models it takes, beside the base where it is no model itself.
std::string ModelCountText(const MethodInfo& method);

// How often the sources are gone through, the merge included: with the default parameters, and at most, as found by
// changing one parameter at a time.
struct RoundCounts {
  size_t by_default = 1, most = 1;
};
RoundCounts CountRounds(const MethodInfo& method);

// "0 to 1", "tensor, model", "any number".
std::string RangeText(const ParameterSpec& spec);
// "0.5", "true", "tensor".
std::string DefaultText(const ParameterSpec& spec);
// "model", "tensor", "recipe": what a parameter has one value for.
std::string_view ScopeName(ParameterScope scope);

Json MethodToJson(const MethodInfo& method);

}  // namespace braid
