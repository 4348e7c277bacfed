#include "io/layer_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <map>
#include <optional>

#include "io/error.h"
#include "io/json.h"

namespace braid {
namespace {

using Names = std::vector<std::string_view>;

constexpr auto kCommonKeys = std::to_array<std::string_view>({"num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth"});
constexpr auto kEncoderKeys = std::to_array<std::string_view>({"encoder_layers", "num_encoder_layers"});
constexpr auto kDecoderKeys = std::to_array<std::string_view>({"decoder_layers", "num_decoder_layers"});
// Lists that may be as long as there are layers by chance.
constexpr auto kOtherLists = std::to_array<std::string_view>({"architectures", "languages", "image_grid_pinpoints"});

Json Parse(const ModelConfig& config) { return ParseJson(config.text, config.path, {.python_literals = true}); }

// The object that a section's name stands for; "" is the whole. nullptr when there is none.
const Json* Section(const Json& config, std::string_view name) {
  if (name.empty()) return &config;
  const auto found = config.find(std::string(name));
  return found == config.end() || !found->is_object() ? nullptr : &*found;
}

const Json* Find(const Json& section, std::string_view key) {
  const auto found = section.find(std::string(key));
  return found == section.end() ? nullptr : &*found;
}

bool Has(std::string_view text, std::string_view part) { return text.find(part) != std::string_view::npos; }

bool HasComponent(std::string_view stack, std::string_view component) {
  return Has(fmt::format(".{}", stack), fmt::format(".{}.", component));
}

// Where the number of a stack's layers may stand.
Names SectionsOf(const Json& config, std::string_view stack) {
  Names sections;
  if (Has(stack, "vis") || Has(stack, "image")) sections = {"vision_config"};
  else if (Has(stack, "audio") || Has(stack, "speech")) sections = {"audio_config"};
  std::erase_if(sections, [&](std::string_view name) { return Section(config, name) == nullptr; });
  if (sections.empty()) sections = {"", "text_config", "llm_config", "language_config"};
  return sections;
}

// A decoder's number is a key of its own where there is one, and the common key is the encoder's then.
Names KeysOf(const Json& section, std::string_view stack) {
  Names keys;
  if (HasComponent(stack, "encoder")) keys.assign(kEncoderKeys.begin(), kEncoderKeys.end());
  if (HasComponent(stack, "decoder")) {
    keys.assign(kDecoderKeys.begin(), kDecoderKeys.end());
    if (std::any_of(keys.begin(), keys.end(), [&](std::string_view key) { return Find(section, key) != nullptr; })) return keys;
  }
  for (std::string_view key : kCommonKeys) keys.push_back(key);
  return keys;
}

bool IsPerLayer(const std::string& key, const Json& value, uint64_t count) {
  if (!value.is_array() || value.size() != count || Has(key, "token_id")) return false;
  return std::find(kOtherLists.begin(), kOtherLists.end(), key) == kOtherLists.end();
}

class LayerEditor {
 public:
  LayerEditor(const ModelConfig& donor, uint64_t count, const std::vector<LayerOrigin>& layers)
      : donor_(Parse(donor)), count_(count), layers_(layers) {
    for (const LayerOrigin& origin : layers)
      if (!origin.config->text.empty() && !origins_.contains(origin.config)) origins_.emplace(origin.config, Parse(*origin.config));
  }

  const Json& donor() const { return donor_; }

  // Edits the text of one section; false when it does not give the number of layers.
  bool Edit(std::string_view name, std::string_view stack, std::string* text, std::vector<std::string>* warnings) const {
    const Json& section = *Section(donor_, name);
    bool found = false;
    for (std::string_view key : KeysOf(section, stack)) {
      const Json* value = Find(section, key);
      if (value == nullptr || AsSize(*value) != count_) continue;
      *text = ReplaceTopLevelValue(*text, key, fmt::format("{}", layers_.size()));
      found = true;
    }
    if (!found) return false;
    for (const auto& [key, value] : section.items()) {
      if (!IsPerLayer(key, value, count_)) continue;
      if (const auto list = Rearranged(name, key, value)) *text = ReplaceTopLevelValue(*text, key, *list);
      else warnings->push_back(fmt::format("config.json: '{}' has one entry per layer, and not all sources have it: set it by hand", Printable(key)));
    }
    return true;
  }

 private:
  std::optional<std::string> Rearranged(std::string_view section, const std::string& key, const Json& of_donor) const {
    std::string list;
    for (const LayerOrigin& origin : layers_) {
      const auto config = origins_.find(origin.config);
      const Json* its = config == origins_.end() ? nullptr : Section(config->second, section);
      const Json* value = its == nullptr ? nullptr : Find(*its, key);
      if (value == nullptr || !value->is_array()) value = &of_donor;
      if (origin.layer >= value->size()) return std::nullopt;
      list += (list.empty() ? "" : ", ") + (*value)[origin.layer].dump();
    }
    return fmt::format("[{}]", list);
  }

  const Json donor_;
  const uint64_t count_;
  const std::vector<LayerOrigin>& layers_;
  std::map<const ModelConfig*, Json> origins_;
};

}  // namespace

std::vector<uint64_t> DeclaredLayerCounts(const ModelConfig& config) {
  std::vector<uint64_t> counts;
  if (config.text.empty()) return counts;
  const Json json = Parse(config);
  for (std::string_view name : SectionsOf(json, "")) {
    const Json* section = Section(json, name);
    if (section == nullptr) continue;
    const auto add = [&](const auto& keys) {
      for (std::string_view key : keys)
        if (const Json* value = Find(*section, key))
          if (const auto count = AsSize(*value)) counts.push_back(*count);
    };
    add(kCommonKeys), add(kEncoderKeys), add(kDecoderKeys);
  }
  return counts;
}

std::string ConfigWithLayers(const ModelConfig& donor, std::string text, std::string_view stack, uint64_t count,
                             const std::vector<LayerOrigin>& layers, std::vector<std::string>* warnings) {
  if (text.empty()) return text;
  const LayerEditor editor(donor, count, layers);
  bool found = false;
  for (std::string_view name : SectionsOf(editor.donor(), stack)) {
    if (Section(editor.donor(), name) == nullptr) continue;
    if (name.empty()) {
      found |= editor.Edit(name, stack, &text, warnings);
      continue;
    }
    std::string part = *TopLevelValue(text, name);
    if (!editor.Edit(name, stack, &part, warnings)) continue;
    text = ReplaceTopLevelValue(text, name, part);
    found = true;
  }
  if (!found && count != layers.size())
    warnings->push_back(fmt::format("config.json has no number of layers that is {}, as many as {}N has: set it by hand to {}", count,
                                    Printable(stack), layers.size()));
  return text;
}

}  // namespace braid
