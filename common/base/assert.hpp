#pragma once
/// For our own bugs only: always on, ends the process so that its supervisor restarts it. Bad input is an `Error`, not
/// an assertion.
#include <cstdio>
#include <cstdlib>

#define PARLANDO_ASSERT(condition, why)                                                                \
  do {                                                                                                 \
    if (!(condition)) [[unlikely]] {                                                                   \
      std::fprintf(stderr, "%s:%d: assertion '%s' failed: %s\n", __FILE__, __LINE__, #condition, why); \
      std::abort();                                                                                    \
    }                                                                                                  \
  } while (false)
