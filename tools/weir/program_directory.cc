#include "tools/weir/program_directory.h"

#include <filesystem>

namespace weir::tools {

std::string ProgramDirectory() {
  std::error_code ignored;
  return std::filesystem::read_symlink("/proc/self/exe", ignored).parent_path().string();
}

}  // namespace weir::tools
