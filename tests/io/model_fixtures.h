// Checkpoints made on the spot for the tests of the parsers: temporary directories, safetensors files from a
// JSON header as it stands, and the errors that reading them gives.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <utility>

#include "io/error.h"

namespace braid::fixture {

// A directory that goes with the object.
class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    std::string pattern = (std::filesystem::temp_directory_path() / "braid_io_XXXXXX").string();
    if (::mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("mkdtemp failed");
    path_ = pattern;
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  ~TemporaryDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }

  const std::string& path() const { return path_; }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

  // Writes a file, with the directories that it needs; returns its path.
  std::string Write(const std::string& name, const std::string& bytes) const {
    std::filesystem::path file = path_ + "/" + name;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file, std::ios::binary) << bytes;
    return file.string();
  }
  void Link(const std::string& target, const std::string& name) const {
    std::filesystem::path link = path_ + "/" + name;
    std::filesystem::create_directories(link.parent_path());
    std::filesystem::create_symlink(target, link);
  }

 private:
  std::string path_;
};

inline std::string LengthBytes(uint64_t length) {
  std::string out;
  for (int i = 0; i < 8; ++i) out += static_cast<char>(length >> (8 * i) & 0xff);
  return out;
}

// A safetensors file: this header, then so many zero bytes.
inline std::string SafetensorsFile(const std::string& json, uint64_t data_bytes) {
  return LengthBytes(json.size()) + json + std::string(data_bytes, '\0');
}

// One F32 tensor per name, two elements each.
inline std::string SmallFile(const std::vector<std::string>& names) {
  std::string json = "{";
  uint64_t begin = 0;
  for (const std::string& name : names) {
    json += (begin == 0 ? "\"" : ",\"") + name + "\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[" +
            std::to_string(begin) + "," + std::to_string(begin + 8) + "]}";
    begin += 8;
  }
  return SafetensorsFile(json + "}", begin);
}

// The Error that `call` throws; fails the test when it throws none.
template <typename Call>
Error ErrorOf(Call call) {
  try {
    call();
  } catch (const Error& error) {
    return error;
  }
  ADD_FAILURE() << "no error was thrown";
  return Error(ErrorCode::kInternal, "none");
}

// Sets an environment variable for a scope; nullptr unsets it.
class ScopedEnvironment {
 public:
  ScopedEnvironment(const char* name, const char* value) : name_(name) {
    if (const char* old = std::getenv(name)) old_ = old;
    Set(value);
  }
  ScopedEnvironment(const ScopedEnvironment&) = delete;
  ~ScopedEnvironment() { Set(old_ ? old_->c_str() : nullptr); }

 private:
  void Set(const char* value) { value == nullptr ? ::unsetenv(name_) : ::setenv(name_, value, 1); }

  const char* name_;
  std::optional<std::string> old_;
};

}  // namespace braid::fixture
