#include "common/checkpoint/safetensors.hpp"

#include <algorithm>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "common/base/mapped_file.hpp"
#include "common/base/nesting.hpp"

namespace parlando::checkpoint {

using nlohmann::json;

namespace {
constexpr std::uint64_t kHeaderBytesMax = 100u << 20;

constexpr int kHeaderDepthMax = 8;
}  // namespace

Result<Safetensors> parse_safetensors(std::span<const std::byte> bytes, std::shared_ptr<const void> owner,
                                      const std::string& name) {
  if (bytes.size() < 8)
    return fail(Errc::bad_format, "'{}' has {} bytes, a safetensors file has at least 8", name, bytes.size());
  std::uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, bytes.data(), 8);
  if (header_bytes > kHeaderBytesMax || header_bytes > bytes.size() - 8)
    return fail(Errc::bad_format, "'{}': header length {} does not fit a file of {} bytes", name, header_bytes,
                bytes.size());
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()) + 8, header_bytes);
  if (nested_deeper_than(text, kHeaderDepthMax))
    return fail(Errc::bad_format, "'{}': header is nested too deeply", name);
  const json header = json::parse(text, nullptr, false);
  if (!header.is_object()) return fail(Errc::bad_format, "'{}': header is not a JSON object", name);
  const auto data = bytes.subspan(8 + header_bytes);
  Safetensors out;
  std::vector<std::pair<std::uint64_t, std::uint64_t>> ranges;
  for (const auto& [key, entry] : header.items()) {
    if (key == "__metadata__") {
      if (!entry.is_object()) return fail(Errc::bad_format, "'{}': __metadata__ is not an object", name);
      for (const auto& [k, v] : entry.items())
        if (v.is_string()) out.metadata[k] = v.get<std::string>();
      continue;
    }
    if (!entry.is_object() || !entry.contains("dtype") || !entry["dtype"].is_string() || !entry.contains("shape") ||
        !entry["shape"].is_array() || !entry.contains("data_offsets") || !entry["data_offsets"].is_array() ||
        entry["data_offsets"].size() != 2)
      return fail(Errc::bad_format, "'{}': tensor '{}' lacks dtype, shape or data_offsets", name, key);
    const auto dtype = dtype_of(entry["dtype"].get<std::string>());
    if (!dtype)
      return fail(Errc::unsupported, "'{}': tensor '{}' has type '{}'", name, key, entry["dtype"].get<std::string>());
    TensorData tensor;
    tensor.dtype = *dtype;
    for (const auto& dim : entry["shape"]) {
      if (!dim.is_number_unsigned() || dim.get<std::uint64_t>() > (1ull << 40))
        return fail(Errc::bad_format, "'{}': tensor '{}' has a bad dimension", name, key);
      tensor.shape.push_back(dim.get<std::int64_t>());
    }
    const auto& offsets = entry["data_offsets"];
    if (!offsets[0].is_number_unsigned() || !offsets[1].is_number_unsigned())
      return fail(Errc::bad_format, "'{}': tensor '{}' has bad offsets", name, key);
    const auto begin = offsets[0].get<std::uint64_t>(), end = offsets[1].get<std::uint64_t>();
    const auto count = elements_of(tensor.shape);
    if (begin > end || end > data.size())
      return fail(Errc::bad_format, "'{}': tensor '{}' lies at [{}, {}), the file holds {} data bytes (truncated?)",
                  name, key, begin, end, data.size());
    if (!count || static_cast<std::uint64_t>(*count) > data.size() ||
        static_cast<std::uint64_t>(*count) * bytes_of(*dtype) != end - begin)
      return fail(Errc::bad_format, "'{}': tensor '{}' of shape {} and type {} does not fill {} bytes", name, key,
                  to_string(tensor.shape), name_of(*dtype), end - begin);
    tensor.bytes = data.subspan(begin, end - begin);
    tensor.owner = owner;
    if (end > begin) ranges.emplace_back(begin, end);
    out.tensors.emplace(key, std::move(tensor));
  }
  std::sort(ranges.begin(), ranges.end());
  for (std::size_t i = 1; i < ranges.size(); ++i)
    if (ranges[i].first < ranges[i - 1].second)
      return fail(Errc::bad_format, "'{}': tensors overlap at byte {}", name, ranges[i].first);
  return out;
}

Result<Safetensors> read_safetensors(const std::filesystem::path& path) {
  PARLANDO_TRY(auto file, MappedFile::open(path));
  auto owner = std::make_shared<const MappedFile>(std::move(file));
  PARLANDO_TRY(auto out, parse_safetensors(owner->bytes(), owner, path.string()));
  for (auto& [name, tensor] : out.tensors) tensor.mapped = true;
  return out;
}

Result<Safetensors> read_safetensors_model(const std::filesystem::path& path) {
  namespace fs = std::filesystem;
  if (fs::is_regular_file(path)) return read_safetensors(path);
  const auto index_path = path / "model.safetensors.index.json";
  if (!fs::exists(index_path)) {
    if (!fs::exists(path / "model.safetensors"))
      return fail(Errc::not_found, "'{}' holds neither model.safetensors nor model.safetensors.index.json",
                  path.string());
    return read_safetensors(path / "model.safetensors");
  }
  PARLANDO_TRY(const auto text, read_file(index_path, 256u << 20));
  if (nested_deeper_than(text, kHeaderDepthMax))
    return fail(Errc::bad_format, "'{}' is nested too deeply", index_path.string());
  const json index = json::parse(text, nullptr, false);
  if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object())
    return fail(Errc::bad_format, "'{}' has no weight_map", index_path.string());
  std::map<std::string, Safetensors> shards;
  Safetensors out;
  for (const auto& [name, file] : index["weight_map"].items()) {
    if (!file.is_string() || file.get<std::string>().find('/') != std::string::npos || file.get<std::string>().empty())
      return fail(Errc::bad_format, "'{}': tensor '{}' names no plain file", index_path.string(), name);
    const auto shard_name = file.get<std::string>();
    if (!shards.contains(shard_name)) {
      PARLANDO_TRY(auto shard, read_safetensors(path / shard_name));
      shards.emplace(shard_name, std::move(shard));
    }
    const auto& tensors = shards[shard_name].tensors;
    const auto found = tensors.find(name);
    if (found == tensors.end())
      return fail(Errc::checkpoint_mismatch, "'{}' says that '{}' holds '{}', it does not", index_path.string(),
                  shard_name, name);
    out.tensors.emplace(name, found->second);
  }
  return out;
}

Result<void> write_safetensors(const std::filesystem::path& path, const TensorMap& tensors,
                               const std::map<std::string, std::string>& metadata) {
  json header = json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  std::uint64_t at = 0;
  for (const auto& [name, tensor] : tensors) {
    header[name] = {
        {"dtype", name_of(tensor.dtype)}, {"shape", tensor.shape}, {"data_offsets", {at, at + tensor.bytes.size()}}};
    at += tensor.bytes.size();
  }
  std::string text = header.dump();
  text.append((8 - text.size() % 8) % 8, ' ');
  const auto temporary = path.string() + ".tmp";
  {
    std::ofstream out(temporary, std::ios::binary | std::ios::trunc);
    const std::uint64_t size = text.size();
    out.write(reinterpret_cast<const char*>(&size), 8);
    out.write(text.data(), static_cast<std::streamsize>(text.size()));
    for (const auto& [name, tensor] : tensors)
      out.write(reinterpret_cast<const char*>(tensor.bytes.data()), static_cast<std::streamsize>(tensor.bytes.size()));
    if (!out.flush()) return fail(Errc::io, "cannot write '{}' ({} data bytes)", temporary, at);
  }
  std::error_code code;
  std::filesystem::rename(temporary, path, code);
  if (code) return fail(Errc::io, "cannot rename '{}': {}", temporary, code.message());
  return {};
}

}  // namespace parlando::checkpoint
