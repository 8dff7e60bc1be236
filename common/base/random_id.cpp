#include "common/base/random_id.hpp"

#include <fmt/format.h>
#include <sys/random.h>

#include "common/base/assert.hpp"

namespace parlando {

std::uint64_t random_u64() {
  std::uint64_t value = 0;
  PARLANDO_ASSERT(::getrandom(&value, sizeof value, 0) == sizeof value,
                  "the kernel's random generator answers small requests whole");
  return value;
}

std::string random_hex(int bytes) {
  std::string out;
  for (int n = 0; n < bytes; ++n) out += fmt::format("{:02x}", random_u64() & 0xff);
  return out;
}

}  // namespace parlando
