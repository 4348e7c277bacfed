#include "pipeline/module_names.h"

#include <array>

#include "pipeline/layer_names.h"

namespace braid {
namespace {

// What mergekit's module names stand for.
struct Word {
  std::string_view module, word;
};
constexpr auto kWords = std::to_array<Word>({
    {"shared", "lm_head"},
    {"text_decoder", "language_model"},
    {"text_decoder", "text_model"},
    {"vision_tower", "visual"},
    {"vision_tower", "vision_model"},
    {"vision_tower", "vision_encoder"},
    {"multi_modal_projector", "mm_projector"},
    {"multi_modal_projector", "connector"},
    {"multi_modal_projector", "visual.merger"},
    {"multi_modal_projector", "visual.deepstack_merger_list"},
});

// Whether `part` is a run of whole components of `name`.
bool HasComponents(std::string_view name, std::string_view part) {
  for (size_t at = name.find(part); at != std::string_view::npos; at = name.find(part, at + 1)) {
    const size_t end = at + part.size();
    if ((at == 0 || name[at - 1] == '.') && (end == name.size() || name[end] == '.')) return true;
  }
  return false;
}

}  // namespace

std::optional<size_t> OwnerOf(std::string_view tensor, const std::vector<std::string_view>& modules) {
  const auto layer = ParseLayerName(tensor);
  const std::string_view name = layer ? layer->stack : tensor;
  std::optional<size_t> owner;
  size_t longest = 0;
  const auto offer = [&](size_t module, std::string_view word) {
    if (word.size() <= longest || !HasComponents(name, word)) return;
    owner = module;
    longest = word.size();
  };
  for (size_t m = 0; m < modules.size(); ++m) {
    offer(m, modules[m]);
    for (const Word& word : kWords)
      if (word.module == modules[m]) offer(m, word.word);
  }
  if (owner) return owner;
  for (std::string_view rest : {"default", "text_decoder", "decoder"})
    for (size_t m = 0; m < modules.size(); ++m)
      if (modules[m] == rest) return m;
  return std::nullopt;
}

}  // namespace braid
