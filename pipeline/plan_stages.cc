// Several merges planned as one. Each stage is planned by itself, in order, as a merge of its own would be; its result
// is then a checkpoint without files, which has the names, shapes and types that the merge would write, and the config.
// In the end the last stage becomes one merge of files, with what it reads of others made on the way (plan_chain.h).
//
// What a stage finds out of whole models has to be known before any tensor that reads it. Such stages are computed anew
// in each round that needs them (plan_phases.h), or spilled: merged into a file first, by a plan of their own. So is
// what they read of others.

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <utility>

#include "io/model_files.h"
#include "pipeline/plan_chain.h"
#include "pipeline/plan_internal.h"
#include "pipeline/plan_lent.h"
#include "pipeline/recipe_stages.h"

namespace braid {
namespace {

std::string OfStage(const PlannedStage& stage, std::string_view text) {
  return stage.name.empty() ? std::string(text) : fmt::format("stage '{}': {}", stage.name, text);
}

// What a merge would write, as far as headers go.
Checkpoint ResultOf(const Plan& plan, const std::string& name, uint64_t number) {
  Checkpoint result;
  result.reference = StageReference(name);
  result.directory = plan.donor_directory;
  if (!plan.donor_config.path.empty())
    result.config =
        ParseModelConfig(MergedConfig(plan.donor_config, plan.config_type, plan.untie_head), plan.donor_config.path);
  Shard shard;
  shard.identity.device = UINT64_MAX;   // no file's, so that its tensors are none that a file has
  shard.identity.inode = number;
  result.shards.push_back(std::move(shard));
  uint64_t offset = 0;
  for (const PlannedTensor& tensor : plan.tensors) {
    result.tensors.push_back({.info = {.name = tensor.name, .dtype = tensor.type, .shape = tensor.shape,
                                       .elements = tensor.elements, .offset = offset, .bytes = tensor.bytes}});
    offset += tensor.bytes;
  }
  result.by_name.resize(result.tensors.size());
  std::iota(result.by_name.begin(), result.by_name.end(), 0u);
  std::sort(result.by_name.begin(), result.by_name.end(), [&](uint32_t a, uint32_t b) {
    return result.tensors[a].info.name < result.tensors[b].info.name;
  });
  return result;
}

void CheckStage(const Recipe& recipe, bool last) {
  if (recipe.tokenizer)
    throw RecipeError(recipe, recipe.tokenizer->where, "a stage cannot align vocabularies")
        .Hint("align them in a merge before, with a recipe of its own");
  if (recipe.chat_template && !last)
    throw RecipeError(recipe, recipe.chat_template->where, "only the last stage has a chat template")
        .Hint("what an earlier one has is not written; move it to the last stage");
}

PlannedStage StageOf(const Plan& plan, const Recipe& recipe) {
  PlannedStage stage{.name = recipe.name, .method = plan.method, .base = plan.base, .models = plan.models};
  stage.type = recipe.out_dtype ? recipe.out_dtype : recipe.dtype;
  return stage;
}

// Of statistics.
uint32_t MostRounds(const Plan& plan) {
  uint32_t most = 0;
  std::vector<bool> seen(plan.coefficients.size());
  for (const PlannedTensor& tensor : plan.tensors) {
    if (tensor.action != TensorAction::kMerge || seen[tensor.coefficients]) continue;
    seen[tensor.coefficients] = true;
    const auto merger =
        plan.method->make(*plan.method, plan.coefficients[tensor.coefficients], tensor.Facts(), Approach::kPlain);
    most = std::max(most, static_cast<uint32_t>(merger->statistics_rounds()) + plan.measured);
  }
  return most;
}

// Chooses the stages that are merged into files first. Stages with statistics of whole models, and what these read of
// others, are either that, or computed anew in every round that needs them, where that reads and writes less in all.
class SpillChooser {
 public:
  SpillChooser(const std::vector<Plan>& plans, const std::vector<StageFinds>& finds, const StageResults& results,
               const PlanOptions& options)
      : plans_(plans), finds_(finds), results_(results), options_(options) {
    const std::vector<Checkpoint>& checkpoints = plans.back().checkpoints;
    for (const Plan& plan : plans) {
      std::map<int32_t, uint64_t>& bytes = reads_.emplace_back();
      for (const PlannedTensor& tensor : plan.tensors) {
        if (tensor.action != TensorAction::kMerge) continue;
        for (size_t slot = 0; slot <= tensor.models.size(); ++slot) {
          const TensorSource& source = tensor.SourceAt(slot);
          if (!source.present()) continue;
          const Checkpoint& from = checkpoints[static_cast<size_t>(source.checkpoint)];
          bytes[source.checkpoint] += from.tensors[source.tensor].info.bytes;
        }
      }
    }
  }

  // One stage after the other, again as long as that changes anything: what one costs depends on the others.
  std::vector<bool> Choose(std::vector<PlannedStage>* stages) const {
    std::vector<bool> spilled = Candidates();
    for (bool again = true; again;) {
      again = false;
      for (uint32_t s = 0; s < plans_.size(); ++s) {
        if (!spilled[s]) continue;
        std::vector<bool> without = spilled;
        without[s] = false;
        SpillChoice& choice = (*stages)[s].choice.emplace();
        choice.spilled = Bytes(spilled);
        choice.why_not = WhyNot(without);
        if (!choice.why_not.empty()) continue;
        choice.recomputed = Bytes(without);
        if (choice.recomputed > choice.spilled) continue;
        spilled = std::move(without);
        again = true;
      }
    }
    return spilled;
  }

 private:
  std::vector<bool> Candidates() const {
    std::vector<bool> candidates(plans_.size());
    for (uint32_t s = 0; s < plans_.size(); ++s) {
      if (finds_[s].of != StageFinds::Of::kModels) continue;
      candidates[s] = s + 1 < plans_.size();
      for (const auto& result : results_)
        if (StagesOfRun(plans_, s, {result}).size() > 1) candidates[result.second] = true;
    }
    return candidates;
  }

  StageResults OnTheWay(const std::vector<bool>& spilled) const {
    StageResults results = results_;
    std::erase_if(results, [&](const auto& result) { return spilled[result.second]; });
    return results;
  }
  bool EndsRun(uint32_t stage, const std::vector<bool>& spilled) const {
    return spilled[stage] || stage + 1 == plans_.size();
  }

  std::string WhyNot(const std::vector<bool>& spilled) const {
    const StageResults on_the_way = OnTheWay(spilled);
    for (uint32_t s = 0; s < plans_.size(); ++s)
      if (EndsRun(s, spilled))
        if (std::string why_not = WhyNotChained(plans_, finds_, s, on_the_way); !why_not.empty()) return why_not;
    return "";
  }

  // Bytes of files behind each stage's merge: each is read once, however many stages want it.
  using Files = std::map<int32_t, uint64_t>;
  std::vector<Files> FilesOfStages(const StageResults& on_the_way) const {
    std::vector<Files> all(plans_.size());   // a stage uses earlier ones only
    for (uint32_t s = 0; s < plans_.size(); ++s) {
      const auto add = [&](int32_t checkpoint, uint64_t bytes) {
        all[s][checkpoint] = std::max(all[s][checkpoint], bytes);
      };
      for (const auto& [checkpoint, bytes] : reads_[s]) {
        const auto made = on_the_way.find(checkpoint);
        if (made == on_the_way.end()) add(checkpoint, bytes);
        else for (const auto& [file, its] : all[made->second]) add(file, its);
      }
    }
    return all;
  }
  static uint64_t Sum(const Files& files) {
    uint64_t sum = 0;
    for (const auto& [checkpoint, bytes] : files) sum += bytes;
    return sum;
  }

  // Of all runs. Where tensors are gone through one after the other, what they need of files is read once.
  uint64_t Bytes(const std::vector<bool>& spilled) const {
    const StageResults on_the_way = OnTheWay(spilled);
    const std::vector<Files> files = FilesOfStages(on_the_way);
    uint64_t bytes = 0;
    for (uint32_t end = 0; end < plans_.size(); ++end) {
      if (!EndsRun(end, spilled)) continue;
      bytes += BytesOfFronts(StagesOfRun(plans_, end, on_the_way), on_the_way, files) + Sum(files[end]);
      if (!spilled[end]) continue;
      for (const PlannedTensor& tensor : plans_[end].tensors) bytes += tensor.bytes;
    }
    return bytes;
  }

  // What a run reads before the merge.
  uint64_t BytesOfFronts(const std::vector<uint32_t>& run, const StageResults& on_the_way,
                         const std::vector<Files>& files) const {
    const auto whole = [&](uint32_t s) { return finds_[s].of == StageFinds::Of::kModels; };
    if (std::none_of(run.begin(), run.end(), whole)) return 0;
    const RunPhases phases = PhasesOf(plans_, finds_, run, on_the_way);
    std::map<uint32_t, Files> once;   // by phase: single tensors, or quotas of whole models that no other round needs
    uint64_t bytes = 0;
    for (const uint32_t s : run) {
      if (phases.phase[s] == RunPhases::kNone) continue;
      if (whole(s)) bytes += ReadsOfStatistics(s, on_the_way) * Sum(files[s]);
      if (phases.phase[s] == phases.last() || (whole(s) && !HandsOutLater(s, run, phases, on_the_way))) continue;
      for (const auto& [checkpoint, its] : files[s]) {
        uint64_t& most = once[phases.phase[s]][checkpoint];
        most = std::max(most, its);
      }
    }
    for (const auto& [phase, its] : once) bytes += Sum(its);
    return bytes;
  }

  // Whether no stage that has its rounds in the same phase merges it in them.
  bool HandsOutLater(uint32_t stage, const std::vector<uint32_t>& run, const RunPhases& phases,
                     const StageResults& on_the_way) const {
    if (!finds_[stage].ordered) return false;
    return std::none_of(run.begin(), run.end(), [&](uint32_t s) {
      if (s == stage || phases.phase[s] != phases.phase[stage]) return false;
      const std::vector<uint32_t> behind = StagesOfRun(plans_, s, on_the_way);
      return std::binary_search(behind.begin(), behind.end(), stage);
    });
  }

  // How often the files of a stage that finds something out of whole models are read for that: what it finds of files
  // alone may be found from a sample.
  uint64_t ReadsOfStatistics(uint32_t stage, const StageResults& on_the_way) const {
    const Plan& plan = plans_[stage];
    const auto is_made = [&](const auto& read) { return on_the_way.contains(read.first); };
    const bool samples = plan.model_scope && ElementsOfModel(plan) >= options_.least_sampled &&
                         std::none_of(reads_[stage].begin(), reads_[stage].end(), is_made);
    const auto merged = std::find_if(plan.tensors.begin(), plan.tensors.end(), [](const PlannedTensor& tensor) {
      return tensor.action == TensorAction::kMerge;
    });
    if (merged == plan.tensors.end()) return 0;
    TensorFacts facts = merged->Facts();
    if (plan.model_scope) facts = {.elements = ElementsOfModel(plan)};
    const auto merger = plan.method->make(*plan.method, plan.coefficients[merged->coefficients], facts,
                                          samples ? Approach::kSampled : Approach::kPlain);
    uint64_t reads = plan.measured;
    for (size_t r = 0; r < merger->statistics_rounds(); ++r) reads += !merger->round(r).sample;
    return reads;
  }

  const std::vector<Plan>& plans_;
  const std::vector<StageFinds>& finds_;
  const StageResults& results_;
  const PlanOptions& options_;
  std::vector<Files> reads_;   // by stage, files and results
};

// Every stage as a merge of its own, whose sources may be results of others.
struct SeparateStages {
  std::vector<Plan> plans;   // the last one has the checkpoints of all
  std::vector<PlannedStage> stages;
  StageResults results;
  std::vector<std::string> warnings;
};

SeparateStages PlanSeparately(Recipe* recipe, uint64_t budget, const PlanOptions& options) {
  SeparateStages out;
  for (size_t s = 0; s <= recipe->stages.size(); ++s) {
    const bool last = s == recipe->stages.size();
    const Recipe& written = last ? *recipe : recipe->stages[s];
    Recipe own = written;
    own.warnings.clear();
    CheckStage(own, last);
    if (!last && !own.dtype && !own.out_dtype) own.out_dtype = DType::kF32;
    Plan next;
    next.memory.budget = budget;
    if (s > 0) {
      next.checkpoints = std::move(out.plans.back().checkpoints);
      next.reading = std::move(out.plans.back().reading);
    }
    PlanOneMerge(&next, own, options);
    out.stages.push_back(StageOf(next, written));
    for (const std::string& warning : next.warnings) out.warnings.push_back(OfStage(out.stages[s], warning));
    if (!last) {
      next.checkpoints.push_back(ResultOf(next, written.name, s));
      next.reading.push_back({ReadBackend::kMapped, "made on the way"});
      out.results.emplace(static_cast<int32_t>(next.checkpoints.size() - 1), static_cast<uint32_t>(s));
    }
    for (RecipeWarning& warning : next.recipe.warnings) recipe->warnings.push_back(std::move(warning));
    out.plans.push_back(std::move(next));
  }
  return out;
}

}  // namespace

void PlanStages(Plan* plan, Recipe recipe, const PlanOptions& options) {
  auto [plans, stages, results, warnings] = PlanSeparately(&recipe, plan->memory.budget, options);
  const std::vector<StageFinds> finds = FindsOf(plans);
  const std::vector<bool> spilled = SpillChooser(plans, finds, results, options).Choose(&stages);
  StageResults on_the_way;
  for (const auto& result : results)
    if (!spilled[result.second]) on_the_way.insert(result);
  std::vector<SpilledStage> spills;
  for (uint32_t s = 0; s < plans.size(); ++s) {
    if (!spilled[s] && s + 1 < plans.size()) continue;
    if (StagesOfRun(plans, s, on_the_way).size() > 1) PlanChain(&plans, finds, s, on_the_way, &stages);
    else stages[s].rounds = MostRounds(plans[s]);
    if (s + 1 < plans.size()) spills.push_back({.stage = s});
  }
  for (SpilledStage& spill : spills) {
    spill.plan = std::make_shared<Plan>(std::move(plans[spill.stage]));
    spill.plan->stages = stages;
    for (const auto& [result, by] : results)
      if (by == spill.stage) spill.checkpoint = result;
  }
  const uint64_t budget = plan->memory.budget;
  *plan = std::move(plans.back());
  plan->memory.budget = budget;
  plan->recipe = std::move(recipe);
  plan->warnings = std::move(warnings);
  plan->stages = std::move(stages);
  plan->spills = std::move(spills);
  for (const auto& [result, by] : on_the_way) {   // nothing reads it any more
    Checkpoint& checkpoint = plan->checkpoints[static_cast<size_t>(result)];
    checkpoint.shards.clear();
    checkpoint.tensors = {}, checkpoint.by_name = {};
  }
}

// One file each, whose every byte has its place.
void LayOutSpills(Plan* plan, const PlanOptions& options) {
  for (const SpilledStage& spill : plan->spills) {
    PlanOptions own = options;
    own.single_file = own.pipe = false, own.shard_bytes = UINT64_MAX;
    PlanLayout(spill.plan.get(), own);
    Checkpoint& result = plan->checkpoints[static_cast<size_t>(spill.checkpoint)];
    for (size_t t = 0; t < result.tensors.size(); ++t) result.tensors[t].info.offset = spill.plan->tensors[t].offset;
    Shard& shard = result.shards.front();
    shard.name = spill.plan->shards.front().name;
    shard.identity.size = spill.plan->shards.front().bytes;
    shard.data_offset = spill.plan->shards.front().header.size();
  }
}

void PlanSpills(Plan* plan, const PlanOptions& options) {
  if (plan->spills.empty()) return;
  uint64_t all = PlanBytes(*plan);
  for (const SpilledStage& spill : plan->spills) {
    PlanScopes(spill.plan.get());
    all += PlanBytes(*spill.plan);
  }
  for (SpilledStage& spill : plan->spills) {
    spill.plan->memory.budget = plan->memory.budget;
    spill.plan->memory.other_plans = all;
    spill.plan->streams = plan->streams;
    const LentCheckpoints lent(plan, spill.plan.get());
    PlanMemory(spill.plan.get(), options);
    spill.fingerprint = PlanFingerprint(*spill.plan);
  }
  plan->memory.other_plans = all;
}

LentCheckpoints::LentCheckpoints(Plan* from, Plan* to) : from_(*from), to_(*to) {
  std::swap(from_.checkpoints, to_.checkpoints), std::swap(from_.reading, to_.reading);
}

LentCheckpoints::~LentCheckpoints() {
  std::swap(from_.checkpoints, to_.checkpoints), std::swap(from_.reading, to_.reading);
}

}  // namespace braid
