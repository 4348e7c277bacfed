// A merge method: what it is called, what its user can set, and how it computes.
//
// All else follows from this declaration: what a recipe may say, how many sources it takes, rounds, tiles, memory
// and the table of `braid methods`. A new element-wise method is a file with its MethodInfo and its Merger, one line in
// the list in method.cc, one recipe in configs/, one test.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "ops/parameters.h"

namespace braid {

class Merger;
enum class Approach;

enum class BaseUse {
  kRequired,   // the others are compared with it; it is not among the models
  kOptional,   // when given, the method works on task vectors, otherwise on the models themselves (nuslerp)
  kIsFirst,    // the first of the models, where a recipe gives one (slerp)
  kIsASource,  // one more model, where a recipe gives one and does not list it (linear)
  kIsNotUsed,  // lends config.json, tokenizer and missing tensors (passthrough)
};

// The resolved parameters of one tensor, by index into MethodInfo::parameters.
struct Coefficients {
  std::vector<double> shared;               // kTensor and kRecipe parameters (others unused)
  std::vector<std::vector<double>> model;   // per model: kModel parameters (others unused)
  double layer = 0;                         // where lambda is still to be scaled by it: the tensor's place, 0 to 1
  bool operator==(const Coefficients&) const = default;
};

// What is known of a tensor beside its elements.
struct TensorFacts {
  uint64_t elements = 0;
  uint64_t row = 0;     // elements of its last axis; all of them when it has fewer than two axes
  uint64_t slice = 0;   // elements that share an index of its first axis; 0 when it has fewer than two axes
  uint64_t key = 0;     // XXH3-64 of its name; random draws depend on it
};

struct MethodInfo {
  std::string_view name;
  std::string_view summary;      // one line, for --help and the model card
  std::string_view source;       // paper
  BaseUse base = BaseUse::kRequired;
  // How many models it takes, the base included where it counts as one of them (kIsFirst, kIsASource).
  size_t least_models = 1, most_models = SIZE_MAX;
  std::vector<ParameterSpec> parameters = {};
  // Whether, with these coefficients, tiles are whole rows, so that what is found of a row needs no own round; see
  // LaneTile. Null: never. AlwaysByRows: always.
  bool (*by_rows)(const MethodInfo&, const Coefficients&) = nullptr;
  // The same for columns, along the first axis, of tensors with two axes or more: tiles, and the blocks of sums, are
  // groups of whole slices; see ColumnGroup.
  bool (*by_columns)(const MethodInfo&, const Coefficients&) = nullptr;
  // Its statistics are of the whole model, always; see IsModelScope.
  bool whole_model = false;
  // The result is the float32 sum of the base and what Merge writes over zeros, the base's bits where that is 0.
  bool adds_float32 = true;
  // What is wrong with the coefficients of a tensor, as the end of a sentence about it; empty: nothing. May be null.
  std::string (*check)(const MethodInfo&, const Coefficients&) = nullptr;
  // A merger for a scope. With more than one tensor in it (scope = "model"), `scope` has the sum of their elements and
  // no row, and those coefficients that decide statistics are the same in all tensors.
  std::unique_ptr<Merger> (*make)(const MethodInfo&, const Coefficients&, const TensorFacts& scope, Approach) = nullptr;

  bool WorksByRows(const Coefficients& c) const { return by_rows != nullptr && by_rows(*this, c); }
  // The elements that tiles are multiples of, and that sums are of; 0: reduction blocks.
  uint64_t TileUnit(const Coefficients& c, const TensorFacts& tensor) const;
  const ParameterSpec* Find(std::string_view parameter) const;
  int IndexOf(std::string_view parameter) const;  // -1 when it has none of that name
  size_t At(std::string_view parameter) const { return static_cast<size_t>(IndexOf(parameter)); }  // of one that it has
  // Whether a merge may write what it adds to the base instead of the sum (ops/delta_merger.h), and lose no bit.
  bool HasDelta() const { return base == BaseUse::kRequired && adds_float32; }
  // Whether all tensors share their statistics: whole_model, or scope = "model".
  bool IsModelScope(const Coefficients& c) const;
};

// Elements of so many slices that they are 2^20 or more: sums per column then take 24 bytes per column of a group, with
// columns of 4,096 elements a fortieth of two bf16 sources.
uint64_t ColumnGroup(const TensorFacts& tensor);

inline bool AlwaysByRows(const MethodInfo&, const Coefficients&) { return true; }

// Every method, in the order of the documentation.
const std::vector<MethodInfo>& Methods();

// nullptr when there is none of that name.
const MethodInfo* FindMethod(std::string_view name);

// Parameters that some method takes: named in a recipe for a method that has no use for them, they are a warning rather
// than an error, as mergekit lets them pass.
bool IsParameterOfAnotherMethod(std::string_view parameter);

}  // namespace braid
