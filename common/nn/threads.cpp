#include "common/nn/threads.hpp"

#include <ATen/Parallel.h>

#include "kernels/team/team.hpp"

namespace parlando::nn {

void use_threads(int threads) {
  at::set_num_threads(1);
  kernels::Team::use(threads);
}

}  // namespace parlando::nn
