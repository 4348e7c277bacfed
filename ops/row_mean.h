// Means of rows of a tensor, for tokens that a model's vocabulary lacks. Element by element, so that the parts of a row
// can be taken in any order. Thread-safe: functions of their arguments.
#pragma once

#include <cstddef>
#include <cstdint>

namespace braid {

// sum[i] += row[i], in float32: a mean of a few rows is their sum in this order, divided once, as mergekit takes it.
void AddRow(const float* row, size_t n, float* sum);
void DivideRow(float* sum, size_t n, uint64_t count);

// sums[i] += row[i], in float64: for the mean of all rows of a model, added in the order of the rows and rounded once.
void AddToColumns(const float* row, size_t n, double* sums);
void ColumnMeans(const double* sums, size_t n, uint64_t count, float* means);

}  // namespace braid
