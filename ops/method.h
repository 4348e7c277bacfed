// A merge method: what it is called, what its user can set, and how it computes.
//
// Declaration (MethodInfo) and computation are apart, because recipes are checked long before any tensor is
// looked at.
#pragma once

#include <string_view>
#include <vector>

#include "ops/parameters.h"

namespace braid {

enum class BaseUse {
  kRequired,   // the method works on task vectors
  kIsASource,  // a base, when given, is one more source (linear)
  kNone,
};

struct MethodInfo {
  std::string_view name;
  std::string_view summary;      // one line, for --help and the model card
  std::string_view source;       // paper
  BaseUse base = BaseUse::kRequired;
  std::vector<ParameterSpec> parameters;

  const ParameterSpec* Find(std::string_view parameter) const;
  int IndexOf(std::string_view parameter) const;  // -1 when it has none of that name
};

// Every method, in the order of the documentation.
const std::vector<MethodInfo>& Methods();

// nullptr when there is none of that name.
const MethodInfo* FindMethod(std::string_view name);

// Parameters that mergekit's other methods take: named in a recipe for a method that has no use for them, they
// are a warning rather than an error.
bool IsParameterOfAnotherMethod(std::string_view parameter);

}  // namespace braid
