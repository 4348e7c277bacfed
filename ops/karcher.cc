// karcher: methods.md, row of that name. The Karcher mean of the directions, as long as the mean of the norms.
//
// A point on the sphere is kept as its coefficients over the unit vectors, so that a step of the iteration costs the
// square of the number of sources, whatever the tensor's size.

#include <algorithm>
#include <cmath>

#include "ops/gram_merger.h"
#include "ops/trigonometry.h"

namespace braid {
namespace {

// The unit vectors of those sources that have a direction.
class Sphere {
 public:
  Sphere(const Gram& gram, double tol) {
    for (size_t i = 0; i < gram.size(); ++i)
      if (!(gram.Norm(i) <= tol)) sources_.push_back(i);
    for (size_t i : sources_)
      for (size_t j : sources_) cosines_.push_back(Cosine(gram.Product(i, i), gram.Product(j, j), gram.Product(i, j)));
  }

  size_t size() const { return sources_.size(); }
  size_t source(size_t i) const { return sources_[i]; }

  // Of a point with a unit vector; of a vector, its length.
  double CosineWith(const std::vector<double>& point, size_t unit) const {
    double sum = 0;
    for (size_t i = 0; i < size(); ++i) sum += point[i] * cosines_[i * size() + unit];
    return std::clamp(sum, -1.0, 1.0);
  }
  double Length(const std::vector<double>& vector) const {
    double square = 0;
    for (size_t i = 0; i < size(); ++i)
      for (size_t j = 0; j < size(); ++j) square += vector[i] * vector[j] * cosines_[i * size() + j];
    return std::sqrt(std::max(square, 0.0));
  }

  // From `point` to where the mean of the arcs to all units points.
  std::vector<double> MeanTangent(const std::vector<double>& point, double tol) const {
    std::vector<double> tangent(size(), 0.0);
    double along_point = 0;
    for (size_t i = 0; i < size(); ++i) {
      const double cosine = CosineWith(point, i), angle = ArcCos(cosine);
      if (angle < tol) continue;
      const double share = angle / Sin(angle) / static_cast<double>(size());
      tangent[i] += share;
      along_point += share * cosine;
    }
    for (size_t i = 0; i < size(); ++i) tangent[i] -= along_point * point[i];
    return tangent;
  }

 private:
  std::vector<size_t> sources_;
  std::vector<double> cosines_;
};

void Divide(std::vector<double>* vector, double by) {
  for (double& x : *vector) x /= by;
}

std::vector<double> KarcherMean(const Sphere& sphere, int max_iter, double tol) {
  std::vector<double> mean(sphere.size(), 1 / static_cast<double>(sphere.size()));
  if (const double length = sphere.Length(mean); length < tol) {
    std::fill(mean.begin(), mean.end(), 0.0);
    mean[0] = 1;
  } else {
    Divide(&mean, length);
  }
  for (int iteration = 0; iteration < max_iter; ++iteration) {
    const std::vector<double> tangent = sphere.MeanTangent(mean, tol);
    const double angle = sphere.Length(tangent);
    if (angle < tol) break;
    for (size_t i = 0; i < mean.size(); ++i) mean[i] = Cos(angle) * mean[i] + Sin(angle) * (tangent[i] / angle);
    if (const double length = sphere.Length(mean); length > tol) Divide(&mean, length);
  }
  return mean;
}

class KarcherMerger : public GramMerger {
 public:
  KarcherMerger(const MethodInfo& method, const Coefficients& c)
      : GramMerger(method, AllModels(c), false), max_iter_(static_cast<int>(c.shared[method.At("max_iter")])),
        tol_(c.shared[method.At("tol")]) {}

 protected:
  void Solve(const Gram& gram, std::span<double> shares) const override {
    const Sphere sphere(gram, tol_);
    if (sphere.size() == 0) return;   // zeros
    double norm = 0;
    for (size_t i = 0; i < gram.size(); ++i) norm += gram.Norm(i) / static_cast<double>(gram.size());
    const std::vector<double> mean = KarcherMean(sphere, max_iter_, tol_);
    for (size_t i = 0; i < sphere.size(); ++i) shares[sphere.source(i)] = norm * mean[i] / gram.Norm(sphere.source(i));
  }

 private:
  int max_iter_;
  double tol_;
};

std::unique_ptr<Merger> Make(const MethodInfo& method, const Coefficients& c, const TensorFacts&, Approach) {
  return std::make_unique<KarcherMerger>(method, c);
}

std::string Check(const MethodInfo& method, const Coefficients& c) {
  const double iterations = c.shared[method.At("max_iter")];
  return iterations == std::floor(iterations) ? "" : "max_iter is not a whole number";
}

}  // namespace

MethodInfo Karcher() {
  return {.name = "karcher",
          .summary = "Karcher mean of the models' directions, as long as the mean of their norms",
          .source = "Karcher, Riemannian Center of Mass, 1977; for merging: arXiv 2603.04972",
          .base = BaseUse::kIsASource,
          .parameters = {{.name = "max_iter", .default_value = 10, .min = 0, .max = 10'000, .help = "most iterations"},
                         {.name = "tol", .default_value = 1e-5, .min = 0, .max = 1,
                          .help = "smaller norms have no direction; smaller steps end the iteration"}},
          .check = Check,
          .make = Make};
}

}  // namespace braid
