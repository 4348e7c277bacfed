#include "ops/row_mean.h"

namespace braid {

void AddRow(const float* row, size_t n, float* sum) {
  for (size_t i = 0; i < n; ++i) sum[i] += row[i];
}

void DivideRow(float* sum, size_t n, uint64_t count) {
  const auto divisor = static_cast<float>(count);
  for (size_t i = 0; i < n; ++i) sum[i] /= divisor;
}

void AddToColumns(const float* row, size_t n, double* sums) {
  for (size_t i = 0; i < n; ++i) sums[i] += static_cast<double>(row[i]);
}

void ColumnMeans(const double* sums, size_t n, uint64_t count, float* means) {
  const auto divisor = static_cast<double>(count);
  for (size_t i = 0; i < n; ++i) means[i] = static_cast<float>(sums[i] / divisor);
}

}  // namespace braid
