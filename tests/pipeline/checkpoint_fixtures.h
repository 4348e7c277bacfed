// Small checkpoints for the tests of the verbs: tensors from values, as single files or shards with an index.
#pragma once

#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "io/json.h"
#include "io/safetensors.h"
#include "ops/kernels.h"
#include "tests/io/model_fixtures.h"

namespace braid::fixture {

struct Tensor {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<uint64_t> shape;
  std::string bytes;
};

template <typename Element>
std::string BytesOfElements(const std::vector<Element>& elements) {
  std::string bytes(elements.size() * sizeof(Element), '\0');
  if (!elements.empty()) std::memcpy(bytes.data(), elements.data(), bytes.size());
  return bytes;
}

inline Tensor F32(const std::string& name, const std::vector<float>& values) {
  return {name, DType::kF32, {values.size()}, BytesOfElements(values)};
}
inline Tensor F64(const std::string& name, const std::vector<double>& values) {
  return {name, DType::kF64, {values.size()}, BytesOfElements(values)};
}
// Elements of 16 bits as they are stored.
inline Tensor Raw16(const std::string& name, DType dtype, const std::vector<uint16_t>& bits) {
  return {name, dtype, {bits.size()}, BytesOfElements(bits)};
}

inline std::string FileOf(const std::vector<Tensor>& tensors, const std::map<std::string, std::string>& metadata = {}) {
  std::vector<TensorInfo> infos;
  std::string data;
  for (const Tensor& tensor : tensors) {
    infos.push_back({tensor.name, tensor.dtype, tensor.shape, 0, 0, tensor.bytes.size()});
    data += tensor.bytes;
  }
  return MakeSafetensorsHeader(infos, metadata) + data;
}

// Writes shards and their index into `directory`/`name`; returns its path.
inline std::string WriteShards(const TemporaryDirectory& directory, const std::string& name,
                               const std::vector<std::vector<Tensor>>& shards) {
  Json index;
  index["metadata"] = Json::object();
  for (size_t i = 0; i < shards.size(); ++i) {
    const std::string file = "model-" + std::to_string(i + 1) + ".safetensors";
    directory.Write(name + "/" + file, FileOf(shards[i]));
    for (const Tensor& tensor : shards[i]) index["weight_map"][tensor.name] = file;
  }
  directory.Write(name + "/model.safetensors.index.json", index.dump());
  return directory / name;
}

}  // namespace braid::fixture
