#include "worker/checkpoint/model_directory.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <climits>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "worker/checkpoint/json.h"

namespace weir::worker {
namespace {

absl::Status Failed(int error, const std::string& path, const char* what) {
  const std::string hint = error == EMFILE ? "; raise the limit of open files (ulimit -n)" : "";
  return absl::ErrnoToStatus(error, absl::StrFormat("%s: cannot %s%s", path, what, hint));
}

// The path of an open file without symbolic links.
std::string RealPath(int descriptor) {
  std::array<char, PATH_MAX> path;
  const ssize_t length = readlink(absl::StrFormat("/proc/self/fd/%d", descriptor).c_str(), path.data(), path.size());
  return length < 0 ? "" : std::string(path.data(), length);
}

bool IsInside(std::string_view path, std::string_view directory) {
  if (directory == "/") return true;
  return path.size() > directory.size() && path.substr(0, directory.size()) == directory &&
         path[directory.size()] == '/';
}

// ".../models--X/blobs" for ".../models--X/snapshots/R", else "".
std::string BlobDirectory(const std::string& real_path) {
  const size_t revision = real_path.rfind('/');
  if (revision == std::string::npos || revision == 0) return "";
  const size_t snapshots = real_path.rfind('/', revision - 1);
  if (snapshots == std::string::npos || snapshots == 0) return "";
  if (real_path.substr(snapshots, revision - snapshots) != "/snapshots") return "";
  const size_t model = real_path.rfind('/', snapshots - 1);
  if (model == std::string::npos || real_path.compare(model, 9, "/models--") != 0) return "";
  return real_path.substr(0, snapshots) + "/blobs";
}

}  // namespace

ModelFile::~ModelFile() { close(descriptor_); }

absl::Status ModelFile::Read(int64_t offset, std::span<char> out) const {
  while (!out.empty()) {
    const ssize_t count = pread(descriptor_, out.data(), out.size(), offset);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return Failed(errno, path_, "read it");
    if (count == 0) {
      return absl::DataLossError(absl::StrFormat(
          "%s: expected data at byte %d, found the file's end: it was cut while in use", path_, offset));
    }
    out = out.subspan(count);
    offset += count;
  }
  return absl::OkStatus();
}

void ModelFile::ReadExactly() const { posix_fadvise(descriptor_, 0, 0, POSIX_FADV_RANDOM); }

absl::StatusOr<std::unique_ptr<ModelDirectory>> ModelDirectory::Open(const std::string& path) {
  std::string clean_path = path;
  while (clean_path.size() > 1 && clean_path.back() == '/') clean_path.pop_back();
  const int descriptor = open(clean_path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) {
    return Failed(errno, clean_path, errno == ENOTDIR ? "open it as a model directory" : "open the model directory");
  }
  std::string real_path = RealPath(descriptor);
  return std::unique_ptr<ModelDirectory>(new ModelDirectory(descriptor, std::move(clean_path), std::move(real_path)));
}

ModelDirectory::~ModelDirectory() { close(descriptor_); }

bool ModelDirectory::Has(const std::string& name) const {
  return faccessat(descriptor_, name.c_str(), F_OK, AT_SYMLINK_NOFOLLOW) == 0;
}

absl::Status ModelDirectory::CheckInside(int descriptor, const std::string& file_path) const {
  const std::string real_path = RealPath(descriptor);
  if (IsInside(real_path, real_path_)) return absl::OkStatus();
  const std::string blobs = BlobDirectory(real_path_);
  if (!blobs.empty() && IsInside(real_path, blobs)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrFormat("%s: expected a file inside the directory, found a symbolic link that leaves it, to %s: copy the "
                      "file in its place",
                      file_path, real_path));
}

absl::StatusOr<std::unique_ptr<ModelFile>> ModelDirectory::OpenFile(const std::string& name) const {
  if (name.empty() || name == "." || name == ".." || name.find('/') != std::string::npos ||
      name.find('\0') != std::string::npos) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: expected the name of a file in this directory, found %s", path_, Quoted(name)));
  }
  const std::string file_path = absl::StrCat(path_, "/", name);
  // O_NONBLOCK: opening a pipe must not wait for its writer.
  const int descriptor = openat(descriptor_, name.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) return Failed(errno, file_path, "open it");
  struct stat status = {};
  const int error = fstat(descriptor, &status) == 0 ? 0 : errno;
  auto file = std::make_unique<ModelFile>(descriptor, status.st_size, file_path);
  if (error != 0) return Failed(error, file_path, "examine it");
  if (!S_ISREG(status.st_mode)) {
    return absl::InvalidArgumentError(absl::StrFormat("%s: expected a regular file", file_path));
  }
  if (absl::Status inside = CheckInside(descriptor, file_path); !inside.ok()) return inside;
  return file;
}

absl::StatusOr<std::string> ModelDirectory::ReadText(const std::string& name, int64_t max_bytes) const {
  absl::StatusOr<std::unique_ptr<ModelFile>> file = OpenFile(name);
  if (!file.ok()) return file.status();
  if ((*file)->num_bytes() > max_bytes) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: expected at most %d bytes, found %d", (*file)->path(), max_bytes, (*file)->num_bytes()));
  }
  std::string text((*file)->num_bytes(), '\0');
  if (absl::Status status = (*file)->Read(0, text); !status.ok()) return status;
  return text;
}

}  // namespace weir::worker
