#include "gateway/identity/file_stamp.h"

#include <sys/stat.h>

namespace weir::gateway {

std::string StampOf(const std::string& path) {
  struct stat state{};
  if (::stat(path.c_str(), &state) != 0) return "";
  return std::to_string(state.st_ino) + "/" + std::to_string(state.st_size) + "/" +
         std::to_string(state.st_mtim.tv_sec) + "." + std::to_string(state.st_mtim.tv_nsec);
}

}  // namespace weir::gateway
