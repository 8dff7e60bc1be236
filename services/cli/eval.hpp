#pragma once
/// `parlando eval`: the bundled model judged through this runtime, by the recipe's own judges.
#include <string>
#include <vector>

namespace parlando::cli {

/// Becomes the judge, a Python program. @param rest  passed on to it   @return the exit code when that cannot be
int eval(const std::string& model, const std::string& work, const std::vector<std::string>& rest);

}  // namespace parlando::cli
