#include "pipeline/tokenizer_files.h"


#include <algorithm>
#include <utility>
#include <vector>

#include "io/model_directory.h"
#include "io/model_files.h"
#include "io/shard_writer.h"
#include "io/tokenizer_writer.h"

namespace braid {
namespace {

constexpr const char* kTokenizer = "tokenizer.json";
constexpr const char* kConfig = "tokenizer_config.json";

void Rewrite(const std::string& path, const Tokenizer& from, const Tokenizer& to, PlannedTokenizer* files) {
  if (from.format != Tokenizer::Format::kTokenizerJson)
    throw Error(ErrorCode::kIncompatible, "only in a tokenizer.json can a vocabulary be changed, and it has none")
        .Path(path)
        .Hint("AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR) of transformers writes one");
  const ModelDirectory directory(path);
  const std::string file = directory.FilePath(kTokenizer);
  files->rewritten = true;
  files->texts[kTokenizer] = RewriteTokenizer(ReadTokenizerFile(file), file, from, to);
  if (directory.Has(kConfig))
    files->texts[kConfig] = RewriteTokenizerConfig(ReadSmallFile(directory.FilePath(kConfig)), to);
}

// The template that most of the sources have, the earlier one among equals; nothing when none has any.
std::optional<std::string> MostCommonTemplate(const Plan& plan) {
  std::vector<std::pair<std::string, int>> counts;
  std::vector<const Checkpoint*> sources;
  if (plan.base >= 0) sources.push_back(&plan.checkpoints[static_cast<size_t>(plan.base)]);
  for (uint32_t model : plan.models)
    if (static_cast<int32_t>(model) != plan.base) sources.push_back(&plan.checkpoints[model]);
  for (const Checkpoint* source : sources) {
    if (source->directory.empty()) continue;
    std::optional<std::string> found = FindChatTemplate(source->directory);
    if (!found) continue;
    const size_t begin = found->find_first_not_of(" \t\r\n"), end = found->find_last_not_of(" \t\r\n");
    if (begin == std::string::npos) continue;
    const std::string text = found->substr(begin, end - begin + 1);
    const auto known =
        std::find_if(counts.begin(), counts.end(), [&](const auto& count) { return count.first == text; });
    if (known == counts.end()) counts.emplace_back(text, 1);
    else ++known->second;
  }
  const auto most = std::max_element(counts.begin(), counts.end(),
                                     [](const auto& a, const auto& b) { return a.second < b.second; });
  if (most == counts.end()) return std::nullopt;
  return most->first;
}

void SetChatTemplate(Plan* plan, const std::string& directory) {
  const ChatTemplate& wanted = *plan->recipe.chat_template;
  std::optional<std::string> text = wanted.text;
  if (wanted.text.empty()) text = MostCommonTemplate(*plan);
  if (!text) return plan->recipe.warnings.push_back({"no model has a chat template", wanted.where});
  std::string& config_text = plan->tokenizer.texts[kConfig];
  if (config_text.empty() && !directory.empty())
    if (const ModelDirectory files(directory); files.Has(kConfig)) config_text = ReadSmallFile(files.FilePath(kConfig));
  config_text = WithChatTemplate(config_text, *text);
  plan->tokenizer.texts["chat_template.jinja"] = *text;   // which newer clients ask first
}

}  // namespace

uint64_t PlannedTokenizer::MemoryBytes() const {
  uint64_t bytes = 0;
  for (const auto& [name, text] : texts) bytes += name.size() + text.capacity() + 64;
  return bytes;
}

void PlanTokenizerFiles(Plan* plan, const std::string& directory, const Tokenizer* from, const Tokenizer* to) {
  plan->tokenizer.directory = directory;
  if (to != nullptr) Rewrite(directory, *from, *to, &plan->tokenizer);
  if (plan->recipe.chat_template) SetChatTemplate(plan, directory.empty() ? plan->donor_directory : directory);
}

void WriteDonorFiles(const Plan& plan, bool with_tokenizer, Staging* staging) {
  const PlannedTokenizer& tokenizer = plan.tokenizer;
  const auto copy = [&](const std::string& directory, auto wanted) {
    if (directory.empty()) return;
    for (const std::string& name : SideFiles(directory))
      if (wanted(name) && !tokenizer.texts.contains(name)) CopyDurably(directory + "/" + name, staging->PathFor(name));
  };
  const bool own = !tokenizer.directory.empty();
  copy(plan.donor_directory,
       [&](const std::string& name) { return (with_tokenizer && !own) || !IsTokenizerFile(name); });
  if (!with_tokenizer) return;
  copy(tokenizer.directory, [&](const std::string& name) {
    return IsTokenizerFile(name) && !(tokenizer.rewritten && IsVocabularyFile(name));
  });
  for (const auto& [name, text] : tokenizer.texts) WriteDurably(staging->PathFor(name), text);
}

}  // namespace braid
