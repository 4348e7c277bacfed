#include "pipeline/layer_names.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

namespace braid {
namespace {

// Nine digits are more layers than any model has, and keep index + 1 far from overflow.
constexpr size_t kMaxIndexDigits = 9;

std::optional<uint64_t> LayerIndex(std::string_view component) {
  if (component.empty() || component.size() > kMaxIndexDigits) return std::nullopt;
  uint64_t index = 0;
  const char* end = component.data() + component.size();
  const auto parsed = std::from_chars(component.data(), end, index);
  if (parsed.ec != std::errc() || parsed.ptr != end) return std::nullopt;
  return index;
}

}  // namespace

std::optional<LayerName> ParseLayerName(std::string_view tensor_name) {
  for (size_t begin = 0; begin <= tensor_name.size();) {
    const size_t end = std::min(tensor_name.find('.', begin), tensor_name.size());
    if (const auto index = LayerIndex(tensor_name.substr(begin, end - begin)))
      return LayerName{tensor_name.substr(0, begin), *index, tensor_name.substr(end)};
    begin = end + 1;
  }
  return std::nullopt;
}

std::string NameInLayer(const LayerName& name, uint64_t index) {
  return fmt::format("{}{}{}", name.stack, index, name.rest);
}

LayerStacks::LayerStacks(const Checkpoint& checkpoint) {
  for (uint32_t t = 0; t < checkpoint.tensors.size(); ++t) {
    const auto name = ParseLayerName(checkpoint.tensors[t].info.name);
    if (!name) continue;
    auto stack = stacks_.find(name->stack);
    if (stack == stacks_.end()) stack = stacks_.emplace(name->stack, Layers()).first;
    stack->second[name->index].push_back(t);
  }
}

const LayerStacks::Layers* LayerStacks::Find(std::string_view stack) const {
  const auto found = stacks_.find(stack);
  return found == stacks_.end() ? nullptr : &found->second;
}

std::string_view StackText(std::string_view stack) {
  return stack.ends_with('.') ? stack.substr(0, stack.size() - 1) : stack;
}

}  // namespace braid
