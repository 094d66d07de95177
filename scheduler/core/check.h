#pragma once

#include <cstdio>
#include <cstdlib>

// A broken rule of the program stops the process, in release too: a block in two hands must not become a wrong answer.

#ifndef WEIR_CHECK
#define WEIR_CHECK(condition, message)                                                                  \
  do {                                                                                                  \
    if (!(condition)) [[unlikely]] {                                                                    \
      std::fprintf(stderr, "%s:%d: check failed: %s: %s\n", __FILE__, __LINE__, #condition, (message)); \
      std::abort();                                                                                     \
    }                                                                                                   \
  } while (false)
#endif
