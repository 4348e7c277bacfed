#include "pipeline/recipe_tokenizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "io/tokenizer.h"
#include "pipeline/chat_templates.h"

namespace braid {
namespace {

using Known = std::vector<std::string_view>;

// Numbers and flags are read as parameters are, in this syntax.
const ParameterSpec kForce = {.name = "force", .kind = ParameterKind::kFlag, .scope = ParameterScope::kRecipe,
                              .help = ""};
const ParameterSpec kPad = {.name = "pad_to_multiple_of", .scope = ParameterScope::kRecipe, .min = 0,
                            .max = Tokenizer::kMostTokens, .help = ""};
const ParameterSpec kTokenId = {.name = "token_id", .scope = ParameterScope::kRecipe, .min = 0,
                                .max = Tokenizer::kMostTokens - 1, .help = ""};

// Jinja, or what mergekit takes for it.
constexpr size_t kLeastTemplate = 20;

bool IsNothing(const RecipeNode& node) { return node.kind == RecipeNode::Kind::kNothing; }

void RequireKnown(const RecipeReader& reader, const RecipeEntry& entry, std::string_view place, const Known& known) {
  if (std::find(known.begin(), known.end(), entry.key) == known.end()) reader.FailUnknownKey(entry, place, known);
}

uint64_t ReadWhole(const RecipeReader& reader, const ParameterSpec& spec, const RecipeNode& node) {
  const double value = reader.ReadSetting(spec, node).values.front();
  if (value != std::floor(value))
    reader.Fail(node.where, fmt::format("'{}' must be a whole number, not {}", spec.name, value));
  return static_cast<uint64_t>(value);
}

void ReadSource(const RecipeNode& node, std::string_view name, const ReadModelText& read, RecipeTokenizer* tokenizer) {
  const std::string text = read(node, name);
  tokenizer->where = node.where;
  if (text == "base") tokenizer->source = RecipeTokenizer::Source::kBase;
  else if (text == "union") tokenizer->source = RecipeTokenizer::Source::kUnion;
  else tokenizer->source = RecipeTokenizer::Source::kModel, tokenizer->model = text;
}

// {kind: zero}, or {kind: model_token, model, token | token_id}; a table without a kind is a model.
void ReadTokenSource(const RecipeReader& reader, const RecipeNode& node, const ReadModelText& read, TokenRule* rule) {
  static const Known known = {"kind", "model", "token", "token_id"};
  const RecipeNode* kind = node.Find("kind");
  const std::string text = reader.ReadText(*kind, "kind");
  if (text != "zero" && text != "model_token")
    reader.Fail(kind->where, fmt::format("the source of a token cannot be of the kind {}", Quoted(text)),
                "known here: zero, model_token");
  rule->kind = text == "zero" ? TokenRule::Kind::kZero : TokenRule::Kind::kModelToken;
  for (const RecipeEntry& entry : node.entries) {
    RequireKnown(reader, entry, "the source of a token", known);
    if (entry.key == "kind" || IsNothing(entry.value)) continue;
    if (rule->kind == TokenRule::Kind::kZero)
      reader.Fail(entry.where, fmt::format("'{}' has no meaning for the kind zero", entry.key));
    if (entry.key == "model") rule->model = read(entry.value, "model");
    if (entry.key == "token") rule->of = reader.ReadText(entry.value, "token");
    if (entry.key == "token_id") rule->id = static_cast<uint32_t>(ReadWhole(reader, kTokenId, entry.value));
  }
  if (rule->kind == TokenRule::Kind::kZero) return;
  if (rule->model.empty()) reader.Fail(node.where, "a model_token without a 'model'");
  if (rule->of.has_value() == rule->id.has_value())
    reader.Fail(node.where, "a model_token has either a 'token' or a 'token_id'");
}

TokenRule ReadRule(const RecipeReader& reader, const RecipeEntry& entry, const ReadModelText& read) {
  static const Known known = {"source", "force"};
  const RecipeNode& node = entry.value;
  TokenRule rule;
  rule.token = entry.key, rule.where = entry.where;
  if (entry.key.empty()) reader.Fail(entry.where, "a token without a text");
  reader.RequireTable(node, entry.key);
  for (const RecipeEntry& member : node.entries) RequireKnown(reader, member, "a token", known);
  const RecipeNode* source = node.Find("source");
  if (source == nullptr || IsNothing(*source))
    reader.Fail(node.where, fmt::format("the token {} without a 'source'", Quoted(entry.key)));
  if (source->kind == RecipeNode::Kind::kTable && source->Find("kind") != nullptr) {
    ReadTokenSource(reader, *source, read, &rule);
  } else {
    rule.kind = TokenRule::Kind::kModel;
    rule.model = read(*source, "source");
  }
  if (const RecipeNode* force = node.Find("force"); force != nullptr && !IsNothing(*force))
    rule.force = reader.ReadSetting(kForce, *force).values.front() != 0;
  return rule;
}

bool IsSource(const Recipe& recipe, const std::string& reference) {
  const auto is_it = [&](const RecipeModel& model) { return model.reference == reference; };
  if (recipe.base == reference || std::any_of(recipe.models.begin(), recipe.models.end(), is_it)) return true;
  for (const RecipeModule& module : recipe.modules)
    for (const RecipeSlice& slice : module.slices)
      if ((slice.base && is_it(*slice.base)) || std::any_of(slice.models.begin(), slice.models.end(), is_it))
        return true;
  return false;
}

void Start(RecipeReader* reader, const RecipeNode& node) {
  if (reader->recipe().tokenizer)
    reader->Fail(node.where, "both 'tokenizer' and 'tokenizer_source'", "keep one of them");
  reader->recipe().tokenizer.emplace().where = node.where;
}

}  // namespace

void ReadTokenizerSource(RecipeReader* reader, const RecipeNode& node, std::string_view name,
                         const ReadModelText& read) {
  Start(reader, node);
  ReadSource(node, name, read, &*reader->recipe().tokenizer);
}

void ReadTokenizerTable(RecipeReader* reader, const RecipeNode& node, const ReadModelText& read) {
  static const Known known = {"source", "tokens", "pad_to_multiple_of"};
  reader->RequireTable(node, "tokenizer");
  Start(reader, node);
  RecipeTokenizer& tokenizer = *reader->recipe().tokenizer;
  for (const RecipeEntry& entry : node.entries) {
    RequireKnown(*reader, entry, "'tokenizer'", known);
    if (IsNothing(entry.value)) continue;
    if (entry.key == "source") {
      ReadSource(entry.value, "source", read, &tokenizer);
    } else if (entry.key == "pad_to_multiple_of") {
      tokenizer.pad_to_multiple_of = std::max<uint64_t>(ReadWhole(*reader, kPad, entry.value), 1);
    } else {
      reader->RequireTable(entry.value, "tokens");
      for (const RecipeEntry& token : entry.value.entries) tokenizer.tokens.push_back(ReadRule(*reader, token, read));
    }
  }
}

void ReadChatTemplate(RecipeReader* reader, const RecipeNode& node) {
  const std::string text = reader->ReadText(node, "chat_template");
  ChatTemplate chat{.text = text, .where = node.where};
  if (text == "auto") chat.text.clear();
  else if (const auto named = NamedChatTemplate(text)) chat.text = *named;
  else if (text.size() < kLeastTemplate || text.find('{') == std::string::npos)
    reader->Fail(node.where, fmt::format("{} is no chat template", Quoted(text)),
                 fmt::format("write 'auto', a Jinja template, or one of {}", fmt::join(ChatTemplateNames(), ", ")));
  reader->recipe().chat_template = std::move(chat);
}

void CheckTokenizer(Recipe* recipe) {
  if (!recipe->tokenizer) return;
  const RecipeTokenizer& tokenizer = *recipe->tokenizer;
  if (tokenizer.source == RecipeTokenizer::Source::kBase && !recipe->base)
    recipe->warnings.push_back({"there is no base: the first model's tokenizer is taken", tokenizer.where});
  for (const TokenRule& rule : tokenizer.tokens) {
    if (rule.kind != TokenRule::Kind::kZero && !IsSource(*recipe, rule.model))
      throw RecipeError(*recipe, rule.where, fmt::format("the token {} comes from {}, which is none of the models",
                                                         Quoted(rule.token), Quoted(rule.model)));
  }
}

}  // namespace braid
