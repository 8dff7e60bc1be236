#include "common/checkpoint/npy.hpp"

#include <charconv>
#include <cstring>

#include "common/base/mapped_file.hpp"

namespace parlando::checkpoint {

Result<TensorData> parse_npy(std::span<const std::byte> bytes, std::shared_ptr<const void> owner,
                             const std::string& name) {
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  if (text.size() < 12 || text.substr(0, 6) != "\x93NUMPY")
    return fail(Errc::bad_format, "'{}' is not an NPY file", name);
  const int major = static_cast<unsigned char>(text[6]);
  if (major != 1 && major != 2) return fail(Errc::unsupported, "'{}' is NPY version {}, 1 and 2 are read", name, major);
  std::size_t header = static_cast<unsigned char>(text[8]) |
                       static_cast<std::size_t>(static_cast<unsigned char>(text[9])) << 8,
              start = 10;
  if (major == 2) {
    header |= static_cast<std::size_t>(static_cast<unsigned char>(text[10])) << 16 |
              static_cast<std::size_t>(static_cast<unsigned char>(text[11])) << 24;
    start = 12;
  }
  if (header > text.size() - start)
    return fail(Errc::bad_format, "'{}': NPY header of {} bytes does not fit the file", name, header);
  const auto dict = text.substr(start, header);
  auto after = [&](std::string_view key) {
    const auto at = dict.find(key);
    return at == std::string_view::npos ? std::string_view{} : dict.substr(at + key.size());
  };
  const auto descr = after("'descr':");
  TensorData out;
  if (descr.find("'<f4'") != std::string_view::npos)
    out.dtype = Dtype::f32;
  else if (descr.find("'<f8'") != std::string_view::npos)
    out.dtype = Dtype::f64;
  else if (descr.find("'<f2'") != std::string_view::npos)
    out.dtype = Dtype::f16;
  else
    return fail(Errc::unsupported, "'{}': only little-endian floats are read, header is {}", name, dict.substr(0, 100));
  if (after("'fortran_order':").substr(0, 8).find("True") != std::string_view::npos)
    return fail(Errc::unsupported, "'{}' is in Fortran order", name);
  auto shape = after("'shape':");
  const auto open = shape.find('('), close = shape.find(')');
  if (open == std::string_view::npos || close == std::string_view::npos || close < open)
    return fail(Errc::bad_format, "'{}': NPY header without shape", name);
  shape = shape.substr(open + 1, close - open - 1);
  while (!shape.empty()) {
    if (shape.front() == ' ' || shape.front() == ',') {
      shape.remove_prefix(1);
      continue;
    }
    std::int64_t dim = 0;
    const auto [end, error] = std::from_chars(shape.data(), shape.data() + shape.size(), dim);
    if (error != std::errc{} || dim < 0 || dim > (std::int64_t{1} << 40))
      return fail(Errc::bad_format, "'{}': NPY shape '{}'", name, shape);
    out.shape.push_back(dim);
    shape.remove_prefix(static_cast<std::size_t>(end - shape.data()));
  }
  const auto count = elements_of(out.shape);
  out.bytes = bytes.subspan(start + header);
  if (!count || static_cast<std::uint64_t>(*count) > out.bytes.size() ||
      static_cast<std::size_t>(*count) * bytes_of(out.dtype) != out.bytes.size())
    return fail(Errc::bad_format, "'{}': shape {} does not fill {} data bytes (truncated?)", name, to_string(out.shape),
                out.bytes.size());
  out.owner = std::move(owner);
  return out;
}

Result<TensorData> read_npy(const std::filesystem::path& path) {
  PARLANDO_TRY(auto file, MappedFile::open(path));
  auto owner = std::make_shared<const MappedFile>(std::move(file));
  return parse_npy(owner->bytes(), owner, path.string());
}

}  // namespace parlando::checkpoint
