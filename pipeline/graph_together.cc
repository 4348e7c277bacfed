// Statistics that several ranks take together: each counts a part, the exchange brings the others.
#include <functional>

#include "pipeline/graph_run.h"

namespace braid {

// A scope's norms are of the unit that it begins in.
bool GraphRun::TakeNormsTogether(std::vector<std::optional<TaskVectorNorms>>* norms, Read::gateway_type& gateway) {
  class Norms : public Counter {
   public:
    Norms(GraphRun* graph, std::vector<std::optional<TaskVectorNorms>>* norms, Read::gateway_type& gateway)
        : graph_(*graph), known_(*norms), gateway_(gateway), norms_(*norms) {}
    bool Count(UnitRun part) override {
      return ForEach(part, [&](size_t s) {
        if (graph_.share_.Any(graph_.plan_.scopes[s])) {
          norms_[s] = known_[s];
          return true;
        }
        const auto run = graph_.Measure(graph_.plan_.scopes[s], gateway_);
        if (run == nullptr || !run->WaitUntilItWaits()) return false;
        norms_[s] = run->merger()->norms();
        graph_.Forget(run.get());
        return true;
      });
    }
    void Save(UnitRun part, const Put& put) override {
      ForEach(part, [&](size_t s) { return put(&*norms_[s], sizeof(TaskVectorNorms)), true; });
    }
    void Load(UnitRun part, const Get& get) override {
      ForEach(part, [&](size_t s) {
        TaskVectorNorms more;
        get(&more, sizeof more);
        norms_[s]->mean += more.mean, norms_[s]->merged += more.merged;
        return true;
      });
    }
    void Clear() override {
      for (auto& norms : norms_)
        if (norms) *norms = {};
    }
    bool failed() const override { return graph_.failed_; }
    const std::vector<std::optional<TaskVectorNorms>>& norms() const { return norms_; }

   private:
    bool ForEach(UnitRun part, const std::function<bool(size_t)>& visit) {
      for (size_t s = 0; s < norms_.size(); ++s) {
        if (!norms_[s]) continue;
        const uint32_t unit =
            UnitsOf(graph_.plan_, graph_.share_.all_units(), graph_.plan_.scopes[s].tensors.front()).first;
        if (unit >= part.first && unit < part.last && !visit(s)) return false;
      }
      return true;
    }

    GraphRun& graph_;
    const std::vector<std::optional<TaskVectorNorms>>& known_;
    Read::gateway_type& gateway_;
    std::vector<std::optional<TaskVectorNorms>> norms_;
  } counter(this, norms, gateway);
  counter.Clear();
  const UnitRun all{0, static_cast<uint32_t>(share_.all_units().size())};
  if (!exchange_->Take({.scope = SharedRound::kNorms, .units = all}, &counter)) return false;
  *norms = counter.norms();
  return true;
}

bool GraphRun::TakeTogether(ScopeRun* run, bool claims, Read::gateway_type& gateway) {
  class Round : public Counter {
   public:
    Round(GraphRun* graph, ScopeRun* run, bool claims, Read::gateway_type& gateway)
        : graph_(*graph), run_(*run), claims_(claims), gateway_(gateway) {
      run_.BeginPart({0, 0}, claims_);   // nothing yet
    }
    bool Count(UnitRun part) override {
      run_.BeginPart(part, claims_);
      if (run_.Pieces().empty()) return true;
      if (!graph_.ReadRound(&run_, gateway_)) return false;
      StallTimer stall(graph_.progress_.of(Stage::kRead));
      return run_.WaitForPart();
    }
    void Save(UnitRun part, const Put& put) override { run_.SavePart(part, put); }
    void Load(UnitRun part, const Get& get) override { run_.LoadPart(part, get); }
    void Clear() override { run_.ClearPart(); }
    bool failed() const override { return graph_.failed_; }

   private:
    GraphRun& graph_;
    ScopeRun& run_;
    const bool claims_;
    Read::gateway_type& gateway_;
  } counter(this, run, claims, gateway);
  const SharedRound round{.scope = NumberOf(run->scope()), .round = run->round(), .claims = claims,
                          .units = run->shared_units()};
  if (!exchange_->Take(round, &counter)) return false;
  run->EndParts();
  return true;
}

}  // namespace braid
