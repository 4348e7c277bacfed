#include "ops/method.h"

#include <algorithm>

// Every method: the function that declares it, in the file that computes it.
#define BRAID_METHODS(METHOD) \
  METHOD(Ties)                \
  METHOD(TaskArithmetic)      \
  METHOD(DareLinear)          \
  METHOD(DareTies)            \
  METHOD(Breadcrumbs)         \
  METHOD(BreadcrumbsTies)     \
  METHOD(Della)               \
  METHOD(DellaLinear)         \
  METHOD(MetaGpt)             \
  METHOD(Linear)              \
  METHOD(Average)             \
  METHOD(Slerp)               \
  METHOD(Nuslerp)             \
  METHOD(Multislerp)          \
  METHOD(Karcher)             \
  METHOD(ModelStock)          \
  METHOD(Nearswap)            \
  METHOD(Passthrough)         \
  METHOD(Ram)                 \
  METHOD(RamPlusTl)           \
  METHOD(ConsensusTa)         \
  METHOD(MagMax)              \
  METHOD(Sce)                 \
  METHOD(ArceeFusion)         \
  METHOD(Pcb)

namespace braid {

#define METHOD(name) MethodInfo name();
BRAID_METHODS(METHOD)
#undef METHOD

const ParameterSpec* MethodInfo::Find(std::string_view parameter) const {
  int index = IndexOf(parameter);
  return index < 0 ? nullptr : &parameters[static_cast<size_t>(index)];
}

int MethodInfo::IndexOf(std::string_view parameter) const {
  for (size_t i = 0; i < parameters.size(); ++i)
    if (parameters[i].name == parameter) return static_cast<int>(i);
  return -1;
}

uint64_t MethodInfo::TileUnit(const Coefficients& c, const TensorFacts& tensor) const {
  if (WorksByRows(c)) return tensor.row;
  if (by_columns != nullptr && tensor.slice > 0 && by_columns(*this, c)) return ColumnGroup(tensor);
  return 0;
}

bool MethodInfo::IsModelScope(const Coefficients& c) const {
  const int scope = IndexOf("scope");
  if (scope < 0) return whole_model;
  const auto s = static_cast<size_t>(scope);
  return whole_model || parameters[s].choices[static_cast<size_t>(c.shared[s])] == "model";
}

uint64_t ColumnGroup(const TensorFacts& tensor) {
  constexpr uint64_t kLeastElements = uint64_t{1} << 20;
  const uint64_t slices = (kLeastElements + tensor.slice - 1) / tensor.slice;
  return std::min(slices, tensor.elements / tensor.slice) * tensor.slice;
}

const std::vector<MethodInfo>& Methods() {
#define METHOD(name) name(),
  static const std::vector<MethodInfo> methods = {BRAID_METHODS(METHOD)};
#undef METHOD
  return methods;
}

const MethodInfo* FindMethod(std::string_view name) {
  for (const MethodInfo& method : Methods())
    if (method.name == name) return &method;
  return nullptr;
}

bool IsParameterOfAnotherMethod(std::string_view parameter) {
  return std::any_of(Methods().begin(), Methods().end(),
                     [&](const MethodInfo& method) { return method.Find(parameter) != nullptr; });
}

}  // namespace braid
