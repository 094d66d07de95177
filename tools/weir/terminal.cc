#include "tools/weir/terminal.h"

#include <unistd.h>

#include <cstdlib>

namespace weir::tools {
namespace {

bool HasLooks() {
  static const bool has = IsTerminal() && std::getenv("NO_COLOR") == nullptr;
  return has;
}

}  // namespace

bool IsTerminal() { return isatty(STDOUT_FILENO) == 1; }
const char* DimOn() { return HasLooks() ? "\033[2m" : ""; }
const char* BoldOn() { return HasLooks() ? "\033[1m" : ""; }
const char* LookOff() { return HasLooks() ? "\033[0m" : ""; }

std::string Printable(const std::string& text) {
  std::string printable;
  printable.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    // The second block of control characters, U+0080 to U+009F, is C2 80 to C2 9F.
    const bool is_c1 = byte == 0xC2 && i + 1 < text.size() && (static_cast<unsigned char>(text[i + 1]) & 0xE0) == 0x80;
    if (is_c1) ++i;
    if (is_c1 || (byte < 0x20 && byte != '\n' && byte != '\t') || byte == 0x7F) {
      printable += "\xEF\xBF\xBD";
    } else {
      printable.push_back(text[i]);
    }
  }
  return printable;
}

}  // namespace weir::tools
