#include "pipeline/vocabulary.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <limits>
#include <set>
#include <utility>

#include "io/hf_cache.h"
#include "pipeline/budget.h"
#include "pipeline/recipe_node.h"
#include "pipeline/tokenizer_files.h"
#include "pipeline/vocabulary_tensors.h"

namespace braid {
namespace {

// The directory of a model that need not have weights: a path, or an id in the Hugging Face cache.
std::string DirectoryOf(const std::string& reference) {
  if (FileExists(reference)) return reference;
  const std::optional<ModelId> id = ParseModelId(reference);
  if (id)
    if (const auto snapshot = FindSnapshot(*id)) return snapshot->directory;
  Error error(ErrorCode::kUsage, "the model whose tokenizer is asked for does not exist");
  error.Path(reference);
  const std::string near = NearestName(reference, std::vector<std::string>{"base", "union"});
  if (!near.empty()) error.Hint(fmt::format("did you mean '{}'?", near));
  else if (id) error.Hint("if it is a model's id, download it first: " + DownloadCommand(*id));
  throw error;
}

Error NoTokenizer(const std::string& reference) {
  return Error(ErrorCode::kIncompatible, "it has no tokenizer").Path(reference)
      .Hint("add its tokenizer.json, or name another model as the tokenizer's source");
}

// Copies of the text and its parts while a tokenizer.json is rewritten: where only added tokens come in; where its
// vocabulary is another; where some are dropped, for which the merges are a tree.
constexpr uint64_t kTextsOfAdding = 3, kTextsOfRewriting = 5, kTextsOfDropping = 16;
// Of a token in a tokenizer.json beside its text: quotes, id, indentation.
constexpr uint64_t kTokenInText = 24;
// Of a new token while vocabularies are united: a node of a map.
constexpr uint64_t kUnitedToken = 96;

uint64_t TextBytes(const Tokenizer& tokenizer) {
  uint64_t bytes = 0;
  for (const Token& token : tokenizer.tokens) bytes += token.text.size() + kTokenInText;
  return bytes;
}

}  // namespace

std::unique_ptr<const Vocabulary> Vocabulary::Make(Plan* plan) {
  if (!plan->recipe.tokenizer) {
    PlanTokenizerFiles(plan, "", nullptr, nullptr);
    return nullptr;
  }
  std::unique_ptr<Vocabulary> vocabulary(new Vocabulary(plan));
  try {
    vocabulary->ReadTokenizers();
    vocabulary->ChooseSource();
    vocabulary->ChooseTokens();
    vocabulary->PlanFiles();
  } catch (const Error& error) {
    // A broken file is no fault of the recipe.
    if (error.code() == ErrorCode::kUsage || error.code() == ErrorCode::kIncompatible)
      throw AskedForAt(error, plan->recipe, plan->recipe.tokenizer->where);
    throw;
  }
  return vocabulary;
}

std::vector<uint32_t> Vocabulary::Order() const {
  std::vector<uint32_t> order;
  if (plan_.base >= 0) order.push_back(static_cast<uint32_t>(plan_.base));
  for (uint32_t model : plan_.models)
    if (std::find(order.begin(), order.end(), model) == order.end()) order.push_back(model);
  return order;
}

// A model without a tokenizer is taken to have the base's, as mergekit does.
void Vocabulary::ReadTokenizers() {
  tokenizers_.resize(plan_.checkpoints.size());
  directories_.resize(plan_.checkpoints.size());
  embedding_rows_.resize(plan_.checkpoints.size());
  const std::vector<uint32_t> order = Order();
  for (size_t i = 0; i < order.size(); ++i) {
    const uint32_t c = order[i];
    const Checkpoint& checkpoint = plan_.checkpoints[c];
    embedding_rows_[c] = VocabularyRows(checkpoint);
    std::optional<Tokenizer> tokenizer;
    if (!checkpoint.directory.empty()) tokenizer = ReadTokenizer(checkpoint.directory);
    if (tokenizer) {
      Hold(c, std::move(*tokenizer));
      if (MemoryBytes() > plan_.memory.budget + kPlanningAllowance) CountTokenizers(i + 1);
    } else if (i == 0) {
      throw NoTokenizer(checkpoint.reference);
    } else {
      tokenizers_[c] = tokenizers_[order.front()], directories_[c] = directories_[order.front()];
      plan_.warnings.push_back(fmt::format("{} has no tokenizer: it is taken to have that of {}", checkpoint.reference,
                                           plan_.checkpoints[order.front()].reference));
    }
  }
}

// Fine-tunes mostly have the tokenizer of their base.
void Vocabulary::Hold(uint32_t c, Tokenizer tokenizer) {
  const uint64_t bytes = tokenizer.MemoryBytes();
  most_ = std::max(most_, held_ + tokenizer.file_bytes + 2 * bytes);   // a list that grows is there twice
  directories_[c] = plan_.checkpoints[c].directory;
  const XXH128_hash_t sum = tokenizer.Sum();
  const auto known =
      std::find_if(sums_.begin(), sums_.end(), [&](const XXH128_hash_t& s) { return XXH128_isEqual(s, sum); });
  const auto index = static_cast<size_t>(known - sums_.begin());
  if (known == sums_.end()) {
    sums_.push_back(sum);
    different_.push_back(std::make_shared<const Tokenizer>(std::move(tokenizer)));
    held_ += bytes;
  }
  tokenizers_[c] = different_[index];
}

// There is not enough memory, and all that is left to find out is how much there should be.
void Vocabulary::CountTokenizers(size_t first) {
  const std::vector<uint32_t> order = Order();
  for (size_t i = first; i < order.size(); ++i) {
    tokenizers_.assign(tokenizers_.size(), nullptr);
    different_.assign(different_.size(), nullptr);
    const Checkpoint& checkpoint = plan_.checkpoints[order[i]];
    if (checkpoint.directory.empty()) continue;
    if (auto tokenizer = ReadTokenizer(checkpoint.directory)) Hold(order[i], std::move(*tokenizer));
  }
  CheckMemory();
}

uint64_t Vocabulary::MemoryBytes() const {
  uint64_t checkpoints = 0, kept = plan_.tokenizer.MemoryBytes();
  for (const Checkpoint& checkpoint : plan_.checkpoints) checkpoints += checkpoint.MemoryBytes();
  for (const auto& [sources, maps] : maps_)
    for (const auto& map : maps) kept += map != nullptr ? map->MemoryBytes() : 0;
  return checkpoints + std::max(most_, held_ + kept);
}

void Vocabulary::CheckMemory() const {
  const uint64_t needed = MemoryBytes();
  if (needed > plan_.memory.budget + kPlanningAllowance)
    throw DoesNotFit(plan_.memory.budget, needed - kPlanningAllowance);
}

// Which tokenizer the output's begins with, whose files it has, and how many of its tokens have a row: of others a
// client must not make ids.
void Vocabulary::ChooseSource() {
  const RecipeTokenizer& recipe = *plan_.recipe.tokenizer;
  const std::vector<uint32_t> order = Order();
  const auto is_it = [&](uint32_t c) { return plan_.checkpoints[c].reference == recipe.model; };
  auto of = order.begin();
  if (recipe.source == RecipeTokenizer::Source::kModel) of = std::find_if(order.begin(), order.end(), is_it);
  if (of != order.end()) {
    from_ = tokenizers_[*of], directory_ = directories_[*of];
    if (embedding_rows_[*of] > 0) from_rows_ = embedding_rows_[*of];
    return;
  }
  directory_ = DirectoryOf(recipe.model);
  std::optional<Tokenizer> tokenizer = ReadTokenizer(directory_);
  if (!tokenizer) throw NoTokenizer(recipe.model);
  const uint64_t bytes = tokenizer->MemoryBytes();
  most_ = std::max(most_, held_ + tokenizer->file_bytes + 2 * bytes);
  held_ += bytes;
  from_ = std::make_shared<const Tokenizer>(std::move(*tokenizer));
  CheckMemory();
}

// The id of a token that the output has from the tokenizer that it begins with.
std::optional<uint32_t> Vocabulary::KeptId(std::string_view token) const {
  const auto place = from_->Find(token);
  if (!place || from_->tokens[*place].id >= from_rows_) return std::nullopt;
  return from_->tokens[*place].id;
}

// Which tokens the output has, with which ids.
void Vocabulary::ChooseTokens() {
  const RecipeTokenizer& recipe = *plan_.recipe.tokenizer;
  const auto has_row = [&](const auto& token) { return token.id < from_rows_; };
  const auto kept = std::partition_point(from_->tokens.begin(), from_->tokens.end(), has_row);
  if (kept != from_->tokens.end())
    plan_.warnings.push_back(
        fmt::format("{} tokens of {} have no row and are left out", from_->tokens.end() - kept, directory_));
  NewTokens more;
  if (kept != from_->tokens.begin()) more.next = std::prev(kept)->id + 1;
  std::copy_if(from_->added.begin(), from_->added.end(), std::back_inserter(more.added), has_row);
  if (recipe.source == RecipeTokenizer::Source::kUnion) Unite(&more);
  AddRuleTokens(&more);
  out_ = from_;
  if (kept != from_->tokens.end() || !more.tokens.empty() || more.added.size() != from_->added.size()) {
    std::vector<Token> tokens;
    tokens.reserve(static_cast<size_t>(kept - from_->tokens.begin()) + more.tokens.size());
    tokens.assign(from_->tokens.begin(), kept);
    const uint64_t uniting = more.tokens.size() * kUnitedToken;
    std::move(more.tokens.begin(), more.tokens.end(), std::back_inserter(tokens));
    Tokenizer out = MakeTokenizer(std::move(tokens), std::move(more.added), directory_);
    out.format = from_->format, out.model = from_->model, out.listed = from_->listed;
    most_ = std::max(most_, held_ + 2 * out.MemoryBytes() + uniting);
    held_ += out.MemoryBytes();
    out_ = std::make_shared<const Tokenizer>(std::move(out));
  }
  if (out_->tokens.empty()) throw Error(ErrorCode::kBadInput, "its tokenizer has no tokens").Path(directory_);
  for (const TokenRule& rule : recipe.tokens) rules_[out_->tokens[*out_->Find(rule.token)].id] = &rule;
  const uint64_t pad = recipe.pad_to_multiple_of;
  rows_ = (out_->Ids() + pad - 1) / pad * pad;
  const auto stays = [&](uint32_t c) { return embedding_rows_[c] == rows_ && SameTokens(Of(c), *out_); };
  const std::vector<uint32_t> order = Order();
  moves_rows_ = !std::all_of(order.begin(), order.end(), stays);
}

void Vocabulary::PlanFiles() {
  if (out_ != from_) {
    const bool drops = from_rows_ < from_->Ids();
    const auto is_plain = [&](const Token& t) { return out_->FindAdded(t.id) == nullptr && !KeptId(t.text); };
    const bool rewrites = drops || std::any_of(out_->tokens.begin(), out_->tokens.end(), is_plain);
    const uint64_t copies = drops ? kTextsOfDropping : rewrites ? kTextsOfRewriting : kTextsOfAdding;
    most_ = std::max(most_, held_ + copies * (from_->file_bytes + (rewrites ? TextBytes(*out_) : 0)));
    CheckMemory();
  }
  PlanTokenizerFiles(&plan_, directory_, from_.get(), out_ == from_ ? nullptr : out_.get());
  plan_.tokenizer.rows = rows_;
}

// What the other models have beyond the base: first their plain tokens, then their added tokens, in the order of models
// and ids. What is an added token in any model is one in the output, as the first model has it.
void Vocabulary::Unite(NewTokens* out) const {
  const std::vector<uint32_t> order = Order();
  const auto has_row = [&](uint32_t c, uint32_t id) { return embedding_rows_[c] == 0 || id < embedding_rows_[c]; };
  std::map<std::string_view, uint32_t> new_ids;
  std::set<std::string_view> added_somewhere;
  std::vector<std::pair<uint32_t, const AddedToken*>> all_added;
  double least_score = 0;
  for (const Token& token : from_->tokens)
    if (token.id < from_rows_) least_score = std::min(least_score, token.score);
  for (uint32_t c : order)
    for (const AddedToken& token : Of(c).added)
      if (has_row(c, token.id) && added_somewhere.insert(token.content).second) all_added.emplace_back(c, &token);

  const auto append = [&](const std::string& text, double score) {
    if (out->next >= Tokenizer::kMostTokens)
      throw Error(ErrorCode::kIncompatible, "the vocabularies together are too large");
    out->tokens.push_back({text, out->next, score});
    return out->next++;
  };
  for (size_t i = 1; i < order.size(); ++i) {
    const Tokenizer& of = Of(order[i]);
    if (&of == from_.get() && embedding_rows_[order[i]] == embedding_rows_[order.front()]) continue;
    for (const Token& token : of.tokens)
      if (has_row(order[i], token.id) && !added_somewhere.contains(token.text) && !KeptId(token.text) &&
          !new_ids.contains(token.text))
        new_ids.emplace(token.text, append(token.text, of.listed ? token.score : least_score));
  }
  for (const auto& [c, token] : all_added) {
    if (c == order.front()) continue;   // it is there already
    const std::optional<uint32_t> kept = KeptId(token->content);
    const auto known = new_ids.find(token->content);
    out->added.push_back(*token);
    out->added.back().id = kept ? *kept : known != new_ids.end() ? known->second : append(token->content, 0);
  }
}

// Tokens that only the recipe knows.
void Vocabulary::AddRuleTokens(NewTokens* out) const {
  if (plan_.recipe.tokenizer->tokens.empty()) return;
  std::set<std::string> known;
  for (const Token& token : out->tokens) known.insert(token.text);
  for (const TokenRule& rule : plan_.recipe.tokenizer->tokens) {
    if (KeptId(rule.token) || !known.insert(rule.token).second) continue;
    out->tokens.push_back({rule.token, out->next, 0});
    out->added.push_back({.content = rule.token, .id = out->next++, .normalized = true});
  }
}

// --- rows -------------------------------------------------------------------------------------------------

bool Vocabulary::Covers(const PlannedTensor& tensor) const {
  const bool by_name = IsEmbedding(tensor.name) || IsOutputHead(tensor.name);
  if (!by_name && !MayBeOutputHead(tensor.name)) return false;
  for (size_t slot = 0; slot <= tensor.models.size(); ++slot) {
    const TensorSource& source = tensor.SourceAt(slot);
    if (!source.present()) continue;
    const TensorInfo& info = plan_.Info(source);
    if (info.shape.empty() || info.elements == 0) return false;
    if (!by_name && info.shape.front() != embedding_rows_[static_cast<size_t>(source.checkpoint)]) return false;
  }
  return true;
}

// A tensor that has as many rows as the vocabulary, and none of the names.
void Vocabulary::WarnOfLookalike(const PlannedTensor& tensor) const {
  if (!moves_rows_) return;
  for (size_t slot = 0; slot <= tensor.models.size(); ++slot) {
    const TensorSource& source = tensor.SourceAt(slot);
    if (!source.present()) continue;
    const auto c = static_cast<size_t>(source.checkpoint);
    const auto embedding = FindEmbedding(plan_.checkpoints[c]);
    if (!embedding || tensor.shape.empty() || tensor.shape.front() != embedding_rows_[c]) return;
    if (plan_.checkpoints[c].tensors[*embedding].info.shape.back() == embedding_rows_[c]) return;
    plan_.warnings.push_back(fmt::format("{} has as many rows as the vocabulary, but its name does not say that they "
                                         "are tokens: it is merged row by row as it is", Printable(tensor.name)));
    return;
  }
}

std::vector<Vocabulary::Source> Vocabulary::SourcesOf(const PlannedTensor& tensor) const {
  std::vector<Source> sources;
  for (size_t slot = 0; slot <= tensor.models.size(); ++slot) {
    const TensorSource& source = tensor.SourceAt(slot);
    if (!source.present()) continue;
    const auto c = static_cast<uint32_t>(source.checkpoint);
    if (std::none_of(sources.begin(), sources.end(), [&](const Source& known) { return known.checkpoint == c; }))
      sources.push_back({static_cast<uint32_t>(slot), c, plan_.Info(source).shape.front()});
  }
  return sources;
}

std::optional<uint32_t> Vocabulary::IdIn(uint32_t checkpoint, uint64_t rows, std::string_view token) const {
  const Tokenizer& tokenizer = Of(checkpoint);
  const auto place = tokenizer.Find(token);
  if (!place || tokenizer.tokens[*place].id >= rows) return std::nullopt;
  return tokenizer.tokens[*place].id;
}

SourceRow Vocabulary::RowOfRule(const TokenRule& rule, const PlannedTensor& tensor,
                                const std::vector<Source>& sources) const {
  const auto fail = [&](const std::string& why) {
    return RecipeError(plan_.recipe, rule.where,
                       fmt::format("the row of {} in {}: {}", Quoted(rule.token), Printable(tensor.name), why));
  };
  const auto source = std::find_if(sources.begin(), sources.end(), [&](const Source& s) {
    return plan_.checkpoints[s.checkpoint].reference == rule.model;
  });
  if (source == sources.end()) throw fail(fmt::format("{} takes no part in this tensor", Quoted(rule.model)));
  if (rule.id) {
    if (*rule.id >= source->rows)
      throw fail(fmt::format("{} has {} rows, and none of the id {}", Quoted(rule.model), source->rows, *rule.id));
    return {source->slot, *rule.id};
  }
  const std::string& wanted = rule.of ? *rule.of : rule.token;
  const auto id = IdIn(source->checkpoint, source->rows, wanted);
  if (!id) throw fail(fmt::format("{} has no token {}", Quoted(rule.model), Quoted(wanted)));
  return {source->slot, *id};
}

Vocabulary::Maps Vocabulary::MakeMaps(const PlannedTensor& tensor, const std::vector<Source>& sources) const {
  std::vector<RowMap> maps(sources.size());
  std::vector<SourceRow> own(sources.size());
  constexpr uint64_t kNone = std::numeric_limits<uint64_t>::max();
  size_t next = 0;   // among the tokens
  for (uint64_t row = 0; row < rows_; ++row) {
    if (next == out_->tokens.size() || out_->tokens[next].id != row) {
      for (RowMap& map : maps) map.AppendPadding();
      continue;
    }
    const Token& token = out_->tokens[next++];
    const auto found = rules_.find(token.id);
    const TokenRule* rule = found == rules_.end() ? nullptr : found->second;
    std::vector<SourceRow> present;
    const SourceRow* of_base = nullptr;
    for (size_t s = 0; s < sources.size(); ++s) {
      const std::optional<uint32_t> id = IdIn(sources[s].checkpoint, sources[s].rows, token.text);
      own[s] = {sources[s].slot, id ? *id : kNone};
      if (!id) continue;
      present.push_back(own[s]);
      if (static_cast<int32_t>(sources[s].checkpoint) == plan_.base) of_base = &own[s];
    }
    for (size_t s = 0; s < sources.size(); ++s) {
      if (own[s].row != kNone && (rule == nullptr || !rule->force)) maps[s].AppendCopy(own[s]);
      else if (rule != nullptr && rule->kind == TokenRule::Kind::kZero) maps[s].AppendZero();
      else if (rule != nullptr) maps[s].AppendCopy(RowOfRule(*rule, tensor, sources));
      else if (present.empty()) maps[s].AppendZero();
      else if (present.size() == 1) maps[s].AppendCopy(present.front());
      else if (of_base != nullptr) maps[s].AppendCopy(*of_base);
      else maps[s].AppendMean(present);
    }
  }
  Maps shared;
  for (size_t s = 0; s < sources.size(); ++s) {
    const bool in_place = maps[s].IsIdentity(sources[s].slot, sources[s].rows);
    shared.push_back(in_place ? nullptr : std::make_shared<const RowMap>(std::move(maps[s])));
  }
  return shared;
}

const Vocabulary::Maps& Vocabulary::MapsOf(const PlannedTensor& tensor, const std::vector<Source>& sources) const {
  const auto known = maps_.find(sources);
  if (known != maps_.end()) return known->second;
  return maps_[sources] = MakeMaps(tensor, sources);
}

void Vocabulary::Align(PlannedTensor* tensor) const {
  if (!Covers(*tensor)) return WarnOfLookalike(*tensor);
  const std::vector<Source> sources = SourcesOf(*tensor);
  const Maps& maps = MapsOf(*tensor, sources);
  if (std::all_of(maps.begin(), maps.end(), [](const auto& map) { return map == nullptr; })) return;
  if (tensor->action == TensorAction::kCopy)
    throw Error(ErrorCode::kIncompatible, "its rows belong to tokens, but it is not of a floating-point type")
        .Tensor(tensor->name);
  tensor->elements = tensor->elements / tensor->shape.front() * rows_;
  tensor->shape.front() = rows_;
  tensor->bytes = tensor->elements * static_cast<uint64_t>(LaneBytes(tensor->type));
  tensor->rows.resize(tensor->models.size() + 1);
  for (size_t slot = 0; slot < tensor->rows.size(); ++slot) {
    const TensorSource& source = tensor->SourceAt(slot);
    if (!source.present()) continue;
    size_t s = 0;
    while (sources[s].checkpoint != static_cast<uint32_t>(source.checkpoint)) ++s;
    if (maps[s] == nullptr) continue;
    // Rows of one type stay in it; what has to be computed, or comes from a file of another type, is float32.
    DType type = plan_.Info(source).dtype;
    for (const RowRun& run : maps[s]->runs()) {
      const bool same = run.kind == RowRun::Kind::kZero ||
                        (run.kind == RowRun::Kind::kCopy && plan_.Info(tensor->SourceAt(run.slot)).dtype == type);
      if (!same) type = DType::kF32;
    }
    tensor->rows[slot] = {maps[s], type};
  }
}

}  // namespace braid
