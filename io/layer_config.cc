#include "io/layer_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <map>
#include <optional>
#include <set>

#include "io/error.h"
#include "io/json.h"

namespace braid {
namespace {

using Names = std::vector<std::string_view>;

constexpr auto kCommonKeys =
    std::to_array<std::string_view>({"num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth"});
constexpr auto kEncoderKeys = std::to_array<std::string_view>({"encoder_layers", "num_encoder_layers"});
constexpr auto kDecoderKeys = std::to_array<std::string_view>({"decoder_layers", "num_decoder_layers"});
// Lists that may be as long as there are layers by chance.
constexpr auto kOtherLists = std::to_array<std::string_view>({"architectures", "languages", "image_grid_pinpoints"});
// Lists of the numbers of some layers, whatever stands in them; others are told by name and value.
constexpr auto kNumberLists = std::to_array<std::string_view>({
    "attn_layer_indices", "cross_attention_layers", "deepstack_visual_indexes", "full_attn_idxs",
    "fullatt_block_indexes", "global_attn_indexes", "hybrid_layer_ids", "local_layer_ids", "mlp_only_layers",
    "moe_layers", "residual_block_indices", "window_block_indices"});
constexpr auto kNumberEndings =
    std::to_array<std::string_view>({"_layers", "_ids", "_idx", "_idxs", "_indexes", "_indices"});
// A text with a character for each layer.
constexpr std::string_view kPattern = "hybrid_override_pattern";

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
    const auto is_there = [&](std::string_view key) { return Find(section, key) != nullptr; };
    if (std::any_of(keys.begin(), keys.end(), is_there)) return keys;
  }
  for (std::string_view key : kCommonKeys) keys.push_back(key);
  return keys;
}

template <typename Keys>
bool IsOneOf(const Keys& keys, std::string_view key) {
  return std::find(keys.begin(), keys.end(), key) != keys.end();
}

bool IsPerLayer(const std::string& key, const Json& value, uint64_t count) {
  if (key == kPattern) return value.is_string() && value.get_ref<const std::string&>().size() == count;
  if (!value.is_array() || value.size() != count || Has(key, "token_id")) return false;
  return !IsOneOf(kOtherLists, key);
}

// Whether a list holds numbers of layers: it has a name for that, and they rise and are of layers that there are. One
// as long as there are layers may have an entry for each instead, and needs a name that is known.
bool HoldsLayerNumbers(const std::string& key, const Json& value, uint64_t count) {
  if (!value.is_array()) return false;
  if (IsOneOf(kNumberLists, key)) return true;
  const auto ends_so = [&](std::string_view ending) { return key.ends_with(ending); };
  const bool is_named = (Has(key, "layer") || Has(key, "block") || Has(key, "attn")) && !key.starts_with("num_") &&
                        std::any_of(kNumberEndings.begin(), kNumberEndings.end(), ends_so);
  if (!is_named || value.size() == count) return false;
  std::optional<uint64_t> last;
  for (const Json& entry : value) {
    const std::optional<uint64_t> number = AsSize(entry);
    if (!number || *number >= count || (last && *number <= *last)) return false;
    last = number;
  }
  return true;
}

class LayerEditor {
 public:
  LayerEditor(const ModelConfig& donor, uint64_t count, const std::vector<LayerOrigin>& layers)
      : donor_(Parse(donor)), count_(count), layers_(layers) {
    for (const LayerOrigin& origin : layers)
      if (!origin.config->text.empty() && !origins_.contains(origin.config))
        origins_.emplace(origin.config, Parse(*origin.config));
  }

  const Json& donor() const { return donor_; }

  // Edits the text of one section; false when it does not give the number of layers.
  bool Edit(std::string_view name, std::string_view stack, std::string* text,
            std::vector<std::string>* warnings) const {
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
      const bool numbers = HoldsLayerNumbers(key, value, count_);
      if (!numbers && !IsPerLayer(key, value, count_)) continue;
      if (const auto list = numbers ? Renumbered(name, key, value) : Rearranged(name, key, value)) {
        *text = ReplaceTopLevelValue(*text, key, *list);
        continue;
      }
      warnings->push_back(fmt::format("config.json: '{}' {}: set it by hand", Printable(key),
                                      numbers ? "should hold numbers of layers, and holds something else"
                                              : "has one entry per layer, and not all sources have it"));
    }
    return true;
  }

 private:
  // What the config of a layer's model has under a key, or else the donor.
  const Json& ValueFor(const LayerOrigin& origin, std::string_view section, const std::string& key,
                       const Json& of_donor) const {
    const auto config = origins_.find(origin.config);
    const Json* its = config == origins_.end() ? nullptr : Section(config->second, section);
    const Json* value = its == nullptr ? nullptr : Find(*its, key);
    return value == nullptr || value->type() != of_donor.type() ? of_donor : *value;
  }

  std::optional<std::string> Rearranged(std::string_view section, const std::string& key, const Json& of_donor) const {
    Json list = Json::array();
    std::string pattern;
    for (const LayerOrigin& origin : layers_) {
      const Json& value = ValueFor(origin, section, key, of_donor);
      if (value.is_string()) {
        const auto& characters = value.get_ref<const std::string&>();
        if (origin.layer >= characters.size()) return std::nullopt;
        pattern += characters[origin.layer];
      } else {
        if (origin.layer >= value.size()) return std::nullopt;
        list.push_back(value[origin.layer]);
      }
    }
    return of_donor.is_string() ? Json(pattern).dump() : Listed(list);
  }

  // The numbers that those layers of the output have whose models name them.
  std::optional<std::string> Renumbered(std::string_view section, const std::string& key, const Json& of_donor) const {
    Json list = Json::array();
    std::map<const Json*, std::set<uint64_t>> named;   // by the lists that there are
    for (uint64_t layer = 0; layer < layers_.size(); ++layer) {
      const Json& value = ValueFor(layers_[layer], section, key, of_donor);
      const auto [numbers, is_new] = named.try_emplace(&value);
      for (size_t i = 0; is_new && i < value.size(); ++i) {
        const std::optional<uint64_t> number = AsSize(value[i]);
        if (!number) return std::nullopt;
        numbers->second.insert(*number);
      }
      if (numbers->second.contains(layers_[layer].layer)) list.push_back(layer);
    }
    return Listed(list);
  }

  static std::string Listed(const Json& list) {
    std::string text;
    for (const Json& entry : list) text += (text.empty() ? "" : ", ") + entry.dump();
    return fmt::format("[{}]", text);
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
    warnings->push_back(fmt::format("config.json has no number of layers that is {}, as many as {}N has: set it by "
                                    "hand to {}", count, Printable(stack), layers.size()));
  return text;
}

}  // namespace braid
