#pragma once

#include <cstdio>
#include <cstdlib>
#include <string>

// For bugs of the caller: prints where, what and why, and aborts.  Active in every build, so that a wrong shape stops
// one process instead of spoiling an answer.  What the world can do wrong is an absl::Status instead.

namespace weir {

[[noreturn]] inline void CheckFailed(const char* file, int line, const char* condition, const std::string& message) {
  std::fprintf(stderr, "%s:%d: check failed: %s%s%s\n", file, line, condition, message.empty() ? "" : ": ",
               message.c_str());
  std::fflush(stderr);
  std::abort();
}

}  // namespace weir

// WEIR_CHECK(condition) or WEIR_CHECK(condition, message).  The message, anything that makes a std::string, is built
// only on failure.
#define WEIR_CHECK(condition, ...)                                                     \
  do {                                                                                 \
    if (!(condition)) [[unlikely]] {                                                   \
      ::weir::CheckFailed(__FILE__, __LINE__, #condition, ::std::string{__VA_ARGS__}); \
    }                                                                                  \
  } while (false)
