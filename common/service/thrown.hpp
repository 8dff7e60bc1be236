#pragma once
/// What is thrown where it is met: the error to tell.
#include <exception>

#include "common/base/result.hpp"

namespace parlando::service {

/// @pre inside of a catch block
inline Error thrown() {
  try {
    throw;
  } catch (const Failure& failure) {
    return failure.error;
  } catch (const std::exception& e) {
    return {Errc::internal, e.what()};
  } catch (...) {
    return {Errc::internal, "something that is no exception was thrown"};
  }
}

}  // namespace parlando::service
