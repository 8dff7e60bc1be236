#pragma once
/// Checked loading of a checkpoint into libtorch tensors. A network asks for each tensor by name and shape; what is
/// missing, misshapen or left over is collected and reported at once.
#include <ATen/core/Tensor.h>

#include <set>

#include "common/checkpoint/tensor_data.hpp"

namespace parlando::tensor {

class Weights {
 public:
  /// @param dtype  run-time type of floating-point tensors
  Weights(checkpoint::TensorMap tensors, std::string source, at::ScalarType dtype = at::kFloat);

  /// A tensor of exactly this shape (-1 = any size in that dimension), converted to the run-time type; zero-copy where
  /// the type agrees. A problem is recorded and an empty tensor returned; `finish` reports it.
  at::Tensor take(const std::string& name, std::vector<std::int64_t> shape);
  /// Rows [first, first + count) of dimension `dim`; reads only those bytes.
  at::Tensor take_slice(const std::string& name, std::vector<std::int64_t> shape, int dim, std::int64_t first,
                        std::int64_t count);
  /// Several tensors (or rows [first, first + count) of them) one below the other in one new tensor: fused projections.
  struct Part {
    std::string name;
    std::vector<std::int64_t> shape;
    std::int64_t first = 0, count = -1;
  };
  at::Tensor stack(const std::vector<Part>& parts);
  /// The same without a conversion: in the type that the file has.
  at::Tensor exactly(const std::string& name, std::vector<std::int64_t> shape);
  /// A tensor that was taken and copied is not needed any more: its pages of the file may go.
  void drop(const std::string& name) const;
  bool has(const std::string& name) const { return tensors_.contains(name); }
  /// Shape as stored; empty when missing.
  checkpoint::Shape shape_of(const std::string& name) const;
  /// @throws Failure (Errc::checkpoint_mismatch) naming up to eight problems.
  void finish();

 private:
  const checkpoint::TensorData* checked(const std::string& name, const std::vector<std::int64_t>& shape);
  checkpoint::TensorMap tensors_;
  std::string source_;
  at::ScalarType dtype_;
  std::set<std::string> taken_;
  std::vector<std::string> problems_;
};

/// Copies a tensor of the file into a torch tensor of its own type.
at::Tensor to_torch(const checkpoint::TensorData& data);

}  // namespace parlando::tensor
