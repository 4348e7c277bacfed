// The methods of GramMerger in plain double arithmetic on the vectors themselves, from the formulas in methods.md: no
// Gram matrix, no blocks, no SIMD, the C library's functions. Where a base is given, the caller passes task vectors and
// adds it.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

namespace braid::reference {

using Vector = std::vector<double>;

inline double Dot(const Vector& a, const Vector& b) {
  long double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += static_cast<long double>(a[i]) * b[i];
  return static_cast<double>(sum);
}
inline double Length(const Vector& a) { return std::sqrt(Dot(a, a)); }

inline Vector Sum(double p, const Vector& a, double q, const Vector& b) {
  Vector sum(a.size());
  for (size_t i = 0; i < a.size(); ++i) sum[i] = p * a[i] + q * b[i];
  return sum;
}
inline Vector Times(double p, const Vector& a) { return Sum(p, a, 0, a); }

inline Vector Arc(double cosine, double t, const Vector& a, const Vector& b) {
  const double angle = std::acos(cosine);
  return Sum(std::sin((1 - t) * angle) / std::sin(angle), a, std::sin(t * angle) / std::sin(angle), b);
}

inline Vector Slerp(const Vector& a, const Vector& b, double t) {
  const double length_a = Length(a) > 1e-8 ? Length(a) : 1, length_b = Length(b) > 1e-8 ? Length(b) : 1;
  const double cosine = std::clamp(Dot(Times(1 / length_a, a), Times(1 / length_b, b)), -1.0, 1.0);
  if (std::fabs(cosine) > 0.9995) return Sum(1 - t, a, t, b);
  return Arc(cosine, t, a, b);
}

inline Vector SlerpMany(const std::vector<Vector>& models, const std::vector<double>& weights) {
  Vector so_far = models[0];
  double sum = weights[0];
  for (size_t i = 1; i < models.size(); ++i) {
    sum += weights[i];
    so_far = Slerp(so_far, models[i], weights[i] / sum);
  }
  return so_far;
}

inline Vector Nuslerp(const Vector& a, const Vector& b, double weight_a, double weight_b) {
  const double t = std::fabs(weight_a + weight_b) < 1e-6 ? 0.5 : weight_b / (weight_a + weight_b);
  const Vector unit_a = Times(1 / std::max(Length(a), 1e-7), a), unit_b = Times(1 / std::max(Length(b), 1e-7), b);
  const double cosine = std::clamp(Dot(unit_a, unit_b), -1.0, 1.0);
  if (1 - cosine * cosine <= 1e-16) return Sum(1 - t, a, t, b);
  return Arc(cosine, t, a, b);
}

// The mean direction is not near 0.
inline Vector Multislerp(const std::vector<Vector>& models, std::vector<double> weights, bool normalize, double eps) {
  double sum = 0, norm = 0;
  for (double w : weights) sum += w;
  for (double& w : weights) w = normalize ? w / sum : w;
  Vector mean(models[0].size(), 0.0), tangents = mean;
  for (size_t i = 0; i < models.size(); ++i) {
    mean = Sum(1, mean, weights[i] / (Length(models[i]) + eps), models[i]);
    norm += weights[i] * Length(models[i]);
  }
  mean = Times(1 / Length(mean), mean);
  for (size_t i = 0; i < models.size(); ++i) {
    const Vector unit = Times(1 / (Length(models[i]) + eps), models[i]);
    tangents = Sum(1, tangents, weights[i], Sum(1, unit, -Dot(unit, mean), mean));
  }
  const double angle = Length(tangents) + eps;
  return Times(norm, Sum(std::cos(angle), mean, std::sin(angle) / angle, tangents));
}

inline Vector Karcher(const std::vector<Vector>& models, int max_iter, double tol) {
  const auto n = static_cast<double>(models.size());
  std::vector<Vector> units;
  double norm = 0;
  for (const Vector& model : models) {
    norm += Length(model) / n;
    if (Length(model) > tol) units.push_back(Times(1 / Length(model), model));
  }
  Vector mean(models[0].size(), 0.0);
  if (units.empty()) return mean;
  const double share = 1 / static_cast<double>(units.size());
  for (const Vector& unit : units) mean = Sum(1, mean, share, unit);
  mean = Length(mean) < tol ? units[0] : Times(1 / Length(mean), mean);
  for (int iteration = 0; iteration < max_iter; ++iteration) {
    Vector tangent(mean.size(), 0.0);
    for (const Vector& unit : units) {
      const double cosine = std::clamp(Dot(mean, unit), -1.0, 1.0), angle = std::acos(cosine);
      if (angle >= tol) tangent = Sum(1, tangent, share * angle / std::sin(angle), Sum(1, unit, -cosine, mean));
    }
    const double angle = Length(tangent);
    if (angle < tol) break;
    mean = Sum(std::cos(angle), mean, std::sin(angle) / angle, tangent);
    mean = Times(1 / Length(mean), mean);
  }
  return Times(norm, mean);
}

// Of task vectors.
inline Vector ModelStock(const std::vector<Vector>& models) {
  const auto n = static_cast<double>(models.size());
  double cosines = 0;
  Vector sum(models[0].size(), 0.0);
  for (size_t i = 0; i < models.size(); ++i) {
    sum = Sum(1, sum, 1, models[i]);
    for (size_t j = 0; j < i; ++j)
      cosines += std::clamp(Dot(models[i], models[j]) / std::max(Length(models[i]) * Length(models[j]), 1e-6), -1.0,
                            1.0);
  }
  const double cosine = cosines / (n * (n - 1) / 2), denominator = 1 + (n - 1) * cosine;
  return Times(std::fabs(denominator) < 1e-6 ? 0 : n * cosine / denominator / n, sum);
}

}  // namespace braid::reference
