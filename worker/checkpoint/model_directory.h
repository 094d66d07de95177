#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

// A directory whose contents are not trusted, and regular files that lie in it.

namespace weir::worker {

// An open file.  Closed on destruction.  May be read from several threads.
class ModelFile {
 public:
  ModelFile(int descriptor, int64_t num_bytes, std::string path)
      : descriptor_(descriptor), num_bytes_(num_bytes), path_(std::move(path)) {}
  ~ModelFile();
  ModelFile(const ModelFile&) = delete;
  ModelFile& operator=(const ModelFile&) = delete;

  // Fills `out` from `offset` on; an error names the file, also when it has become shorter.
  absl::Status Read(int64_t offset, std::span<char> out) const;
  // Tells the kernel to read only what is asked for: no read-ahead into the shards of other ranks.
  void ReadExactly() const;

  int descriptor() const { return descriptor_; }
  int64_t num_bytes() const { return num_bytes_; }  // when it was opened
  const std::string& path() const { return path_; }

 private:
  int descriptor_;
  int64_t num_bytes_;
  std::string path_;
};

class ModelDirectory {
 public:
  static absl::StatusOr<std::unique_ptr<ModelDirectory>> Open(const std::string& path);
  ~ModelDirectory();
  ModelDirectory(const ModelDirectory&) = delete;
  ModelDirectory& operator=(const ModelDirectory&) = delete;

  const std::string& path() const { return path_; }
  bool Has(const std::string& name) const;

  // INVALID_ARGUMENT for names with a '/', for "." and "..", for anything but a regular file, and for a symbolic link
  // whose target lies outside the directory.  One kind of link may leave it: that of HuggingFace's download cache, from
  // models--X/snapshots/R/ to models--X/blobs/.
  absl::StatusOr<std::unique_ptr<ModelFile>> OpenFile(const std::string& name) const;
  // A whole text file of at most max_bytes.
  absl::StatusOr<std::string> ReadText(const std::string& name, int64_t max_bytes) const;

 private:
  ModelDirectory(int descriptor, std::string path, std::string real_path)
      : descriptor_(descriptor), path_(std::move(path)), real_path_(std::move(real_path)) {}
  absl::Status CheckInside(int descriptor, const std::string& file_path) const;

  int descriptor_;
  std::string path_;       // as given, without a '/' at the end
  std::string real_path_;  // without symbolic links
};

}  // namespace weir::worker
