#include "common/tensor/weights.hpp"

#include <ATen/ATen.h>

#include <sys/mman.h>

#include <cstring>

namespace parlando::tensor {

namespace {
at::ScalarType scalar_type(checkpoint::Dtype dtype) {
  using checkpoint::Dtype;
  switch (dtype) {
    case Dtype::f64:
      return at::kDouble;
    case Dtype::f32:
      return at::kFloat;
    case Dtype::f16:
      return at::kHalf;
    case Dtype::bf16:
      return at::kBFloat16;
    case Dtype::i64:
      return at::kLong;
    case Dtype::i32:
      return at::kInt;
    case Dtype::i16:
      return at::kShort;
    case Dtype::i8:
      return at::kChar;
    case Dtype::u8:
      return at::kByte;
    case Dtype::boolean:
      return at::kBool;
  }
  return at::kFloat;
}

/// A view of the mapped bytes; the file lives as long as the tensor. Copies only when the bytes are not aligned for
/// their type.
at::Tensor view_of(const checkpoint::TensorData& data) {
  const auto type = scalar_type(data.dtype);
  if (data.bytes.empty()) return at::empty(data.shape, type);
  if (reinterpret_cast<std::uintptr_t>(data.bytes.data()) % checkpoint::bytes_of(data.dtype) != 0) {
    auto out = at::empty(data.shape, type);
    std::memcpy(out.data_ptr(), data.bytes.data(), data.bytes.size());
    return out;
  }
  auto owner = data.owner;
  return at::from_blob(
      const_cast<std::byte*>(data.bytes.data()), data.shape, [owner](void*) {}, at::TensorOptions(type));
}
}  // namespace

/// The copied pages of a mapped file are not needed any more; without this, loading would hold the checkpoint twice.
void drop_pages(const checkpoint::TensorData& data) {
  if (!data.mapped || data.bytes.empty()) return;
  constexpr std::uintptr_t kPage = 4096;
  const auto begin = reinterpret_cast<std::uintptr_t>(data.bytes.data()), first = (begin + kPage - 1) / kPage * kPage,
             last = (begin + data.bytes.size()) / kPage * kPage;
  if (last > first) ::madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
}

at::Tensor to_torch(const checkpoint::TensorData& data) { return view_of(data).clone(); }

Weights::Weights(checkpoint::TensorMap tensors, std::string source, at::ScalarType dtype)
    : tensors_(std::move(tensors)), source_(std::move(source)), dtype_(dtype) {}

checkpoint::Shape Weights::shape_of(const std::string& name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? checkpoint::Shape{} : found->second.shape;
}

const checkpoint::TensorData* Weights::checked(const std::string& name, const std::vector<std::int64_t>& shape) {
  taken_.insert(name);
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) {
    problems_.push_back("'" + name + "' is missing");
    return nullptr;
  }
  const auto& seen = found->second.shape;
  bool same = seen.size() == shape.size();
  for (std::size_t d = 0; same && d < shape.size(); ++d) same = shape[d] < 0 || shape[d] == seen[d];
  if (!same) {
    problems_.push_back(
        fmt::format("'{}' has shape {}, expected {}", name, checkpoint::to_string(seen), checkpoint::to_string(shape)));
    return nullptr;
  }
  return &found->second;
}

at::Tensor Weights::take(const std::string& name, std::vector<std::int64_t> shape) {
  const auto* data = checked(name, shape);
  if (data == nullptr) return {};
  auto view = view_of(*data);
  if (!view.is_floating_point() || view.scalar_type() == dtype_) return view;
  auto out = view.to(dtype_);
  drop_pages(*data);
  return out;
}

at::Tensor Weights::exactly(const std::string& name, std::vector<std::int64_t> shape) {
  const auto* data = checked(name, shape);
  return data == nullptr ? at::Tensor() : view_of(*data);
}

void Weights::drop(const std::string& name) const {
  if (const auto found = tensors_.find(name); found != tensors_.end()) drop_pages(found->second);
}

at::Tensor Weights::stack(const std::vector<Part>& parts) {
  std::vector<at::Tensor> views;
  std::int64_t rows = 0;
  for (const auto& part : parts) {
    const auto* data = checked(part.name, part.shape);
    if (data == nullptr) return {};
    views.push_back(part.count < 0 ? view_of(*data) : view_of(*data).narrow(0, part.first, part.count));
    rows += views.back().size(0);
  }
  auto shape = views[0].sizes().vec();
  shape[0] = rows;
  auto out = at::empty(shape, dtype_);
  for (std::size_t i = 0, at = 0; i < parts.size(); at += static_cast<std::size_t>(views[i].size(0)), ++i) {
    out.narrow(0, static_cast<std::int64_t>(at), views[i].size(0)).copy_(views[i]);
    drop_pages(tensors_.at(parts[i].name));
  }
  return out;
}

at::Tensor Weights::take_slice(const std::string& name, std::vector<std::int64_t> shape, int dim, std::int64_t first,
                               std::int64_t count) {
  const auto* data = checked(name, shape);
  if (data == nullptr) return {};
  auto out = view_of(*data).narrow(dim, first, count).to(dtype_).contiguous();
  if (out.data_ptr() != data->bytes.data()) drop_pages(*data);
  return out;
}

void Weights::finish() {
  for (const auto& [name, tensor] : tensors_)
    if (!taken_.contains(name) && !name.ends_with("num_batches_tracked"))
      problems_.push_back("'" + name + "' is not part of this network");
  if (problems_.empty()) return;
  std::string list;
  for (std::size_t i = 0; i < problems_.size() && i < 8; ++i) list += (i ? "; " : "") + problems_[i];
  if (problems_.size() > 8) list += fmt::format("; and {} more", problems_.size() - 8);
  raise(Errc::checkpoint_mismatch, "{}: {}", source_, list);
}

}  // namespace parlando::tensor
