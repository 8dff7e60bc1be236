#include "common/checkpoint/torch_zip.hpp"

#include <cstring>
#include <functional>
#include <unordered_map>
#include <variant>

#include "common/base/mapped_file.hpp"

namespace parlando::checkpoint {
namespace {

using Bytes = std::span<const std::byte>;

/// Little-endian cursor over bytes; every read is checked.
class Cursor {
 public:
  Cursor(Bytes bytes, const std::string& name) : bytes_(bytes), name_(name) {}
  template <class T>
  T read() {
    T value;
    std::memcpy(&value, take(sizeof(T)).data(), sizeof(T));
    return value;
  }
  Bytes take(std::size_t count) {
    if (count > bytes_.size() - at_)
      raise(Errc::bad_format, "'{}' ends inside a field at byte {} of {}", name_, at_, bytes_.size());
    at_ += count;
    return bytes_.subspan(at_ - count, count);
  }
  std::string line() {
    std::string out;
    while (true) {
      const char c = read<char>();
      if (c == '\n') return out;
      out += c;
      if (out.size() > 512) raise(Errc::bad_format, "'{}': a pickle line is longer than 512 characters", name_);
    }
  }
  std::size_t at() const { return at_; }

 private:
  Bytes bytes_;
  std::size_t at_ = 0;
  const std::string& name_;
};

struct ZipEntry {
  std::string name;
  Bytes data;
};

std::vector<ZipEntry> read_zip(Bytes bytes, const std::string& name) {
  auto u16 = [&](std::size_t at) {
    if (at + 2 > bytes.size()) raise(Errc::bad_format, "'{}': zip structure points past the end", name);
    std::uint16_t v;
    std::memcpy(&v, bytes.data() + at, 2);
    return v;
  };
  auto u32 = [&](std::size_t at) {
    return static_cast<std::uint32_t>(u16(at)) | static_cast<std::uint32_t>(u16(at + 2)) << 16;
  };
  auto u64 = [&](std::size_t at) {
    return static_cast<std::uint64_t>(u32(at)) | static_cast<std::uint64_t>(u32(at + 4)) << 32;
  };
  if (bytes.size() < 22)
    raise(Errc::bad_format, "'{}' has {} bytes, a zip archive has at least 22", name, bytes.size());
  std::size_t end = bytes.size() - 22;
  while (u32(end) != 0x06054b50u) {
    if (end == 0 || bytes.size() - end > 65557)
      raise(Errc::bad_format, "'{}' is not a zip archive (no end record); older torch files must be saved again", name);
    --end;
  }
  std::uint64_t count = u16(end + 10), at = u32(end + 16);
  if ((count == 0xffff || at == 0xffffffffu) && end >= 20 && u32(end - 20) == 0x07064b50u) {
    const auto record = u64(end - 12);
    if (record > bytes.size() || u32(record) != 0x06064b50u) raise(Errc::bad_format, "'{}': bad zip64 record", name);
    count = u64(record + 32);
    at = u64(record + 48);
  }
  std::vector<ZipEntry> out;
  for (std::uint64_t i = 0; i < count; ++i) {
    if (at >= bytes.size() || u32(at) != 0x02014b50u)
      raise(Errc::bad_format, "'{}': zip entry {} has no header", name, i);
    const auto method = u16(at + 10);
    std::uint64_t packed = u32(at + 20), size = u32(at + 24), local = u32(at + 42);
    const std::size_t name_bytes = u16(at + 28), extra_bytes = u16(at + 30), comment_bytes = u16(at + 32);
    if (at + 46 + name_bytes + extra_bytes > bytes.size())
      raise(Errc::bad_format, "'{}': zip entry {} is truncated", name, i);
    ZipEntry entry;
    entry.name.assign(reinterpret_cast<const char*>(bytes.data()) + at + 46, name_bytes);
    for (std::size_t x = at + 46 + name_bytes, stop = x + extra_bytes; x + 4 <= stop;) {
      const auto id = u16(x), length = u16(x + 2);
      if (id == 1) {
        std::size_t field = x + 4;
        for (auto* value : {&size, &packed, &local})
          if (*value == 0xffffffffu && field + 8 <= x + 4 + length) {
            *value = u64(field);
            field += 8;
          }
      }
      x += 4u + length;
    }
    if (method != 0 || packed != size)
      raise(Errc::unsupported, "'{}': zip entry '{}' is compressed; torch writes stored entries", name, entry.name);
    if (local > bytes.size() || u32(local) != 0x04034b50u)
      raise(Errc::bad_format, "'{}': zip entry '{}' has no local header", name, entry.name);
    const std::uint64_t start = local + 30 + u16(local + 26) + u16(local + 28);
    if (start > bytes.size() || size > bytes.size() - start)
      raise(Errc::bad_format, "'{}': zip entry '{}' of {} bytes is truncated", name, entry.name, size);
    entry.data = bytes.subspan(start, size);
    out.push_back(std::move(entry));
    at += 46 + name_bytes + extra_bytes + comment_bytes;
  }
  return out;
}

struct Value;
using ValuePtr = std::shared_ptr<Value>;
struct Mark {};
struct Global {
  std::string name;
};
struct Storage {
  Dtype dtype;
  std::string key;
  std::int64_t elements;
};
struct Tensor {
  Storage storage;
  std::int64_t offset;
  Shape shape, stride;
};
struct Tuple {
  std::vector<ValuePtr> items;
};
struct Dict {
  std::vector<std::pair<std::string, ValuePtr>> items;
};
struct Value {
  std::variant<std::monostate, Mark, bool, std::int64_t, std::string, Global, Storage, Tensor, Tuple, Dict> v;
};

std::optional<Dtype> storage_type(std::string_view name) {
  static const std::unordered_map<std::string_view, Dtype> types = {
      {"torch.FloatStorage", Dtype::f32},     {"torch.DoubleStorage", Dtype::f64}, {"torch.HalfStorage", Dtype::f16},
      {"torch.BFloat16Storage", Dtype::bf16}, {"torch.LongStorage", Dtype::i64},   {"torch.IntStorage", Dtype::i32},
      {"torch.ShortStorage", Dtype::i16},     {"torch.CharStorage", Dtype::i8},    {"torch.ByteStorage", Dtype::u8},
      {"torch.BoolStorage", Dtype::boolean}};
  const auto found = types.find(name);
  return found == types.end() ? std::nullopt : std::optional(found->second);
}

/// The subset of pickle protocol 2 that torch.save writes for a dictionary of tensors.
class Pickle {
 public:
  Pickle(Bytes bytes, const std::string& name) : in_(bytes, name), name_(name) {}

  ValuePtr run() {
    while (true) {
      if (stack_.size() > 4'000'000 || memo_.size() > 4'000'000)
        raise(Errc::bad_format, "'{}': the pickle is too large", name_);
      const auto op = in_.read<unsigned char>();
      switch (op) {
        case 0x80:
          in_.read<unsigned char>();
          break;  // PROTO
        case 'c':
          global();
          break;
        case '}':
          push(Dict{});
          break;  // EMPTY_DICT
        case ']':
        case ')':
          push(Tuple{});
          break;  // EMPTY_LIST, EMPTY_TUPLE
        case '(':
          push(Mark{});
          break;
        case 't':
        case 'l': {
          auto items = to_mark();
          push(Tuple{std::move(items)});
          break;
        }
        case 'e': {
          auto items = to_mark();
          auto& list = as<Tuple>(top(), "APPENDS");
          for (auto& i : items) list.items.push_back(i);
          break;
        }
        case 'a': {
          auto item = pop();
          as<Tuple>(top(), "APPEND").items.push_back(item);
          break;
        }
        case 0x85:
        case 0x86:
        case 0x87: {  // TUPLE1-3
          std::vector<ValuePtr> items(op - 0x84);
          for (std::size_t i = items.size(); i-- > 0;) items[i] = pop();
          push(Tuple{std::move(items)});
          break;
        }
        case 'X': {
          const auto size = in_.read<std::uint32_t>();
          push(text(size));
          break;
        }  // BINUNICODE
        case 0x8c: {
          const auto size = in_.read<std::uint8_t>();
          push(text(size));
          break;
        }  // SHORT_BINUNICODE
        case 'J':
          push(static_cast<std::int64_t>(in_.read<std::int32_t>()));
          break;
        case 'K':
          push(static_cast<std::int64_t>(in_.read<std::uint8_t>()));
          break;
        case 'M':
          push(static_cast<std::int64_t>(in_.read<std::uint16_t>()));
          break;
        case 0x8a: {  // LONG1
          const auto size = in_.read<std::uint8_t>();
          if (size > 8) raise(Errc::bad_format, "'{}': an integer of {} bytes", name_, size);
          const auto raw = in_.take(size);
          std::int64_t value = 0;
          for (std::size_t i = 0; i < size; ++i)
            value |= static_cast<std::int64_t>(std::to_integer<std::uint64_t>(raw[i]) << (8 * i));
          if (size > 0 && size < 8 && (std::to_integer<unsigned>(raw[size - 1]) & 0x80))
            value -= std::int64_t{1} << (8 * size);
          push(value);
          break;
        }
        case 0x88:
          push(true);
          break;
        case 0x89:
          push(false);
          break;
        case 'N':
          push(std::monostate{});
          break;
        case 'q':
          memo_[in_.read<std::uint8_t>()] = top();
          break;
        case 'r':
          memo_[in_.read<std::uint32_t>()] = top();
          break;
        case 0x94: {
          const auto n = static_cast<std::uint32_t>(memo_.size());
          memo_[n] = top();
          break;
        }
        case 'h':
          recall(in_.read<std::uint8_t>());
          break;
        case 'j':
          recall(in_.read<std::uint32_t>());
          break;
        case 'Q':
          persistent();
          break;
        case 'R':
          reduce();
          break;
        case 's': {
          auto value = pop();
          auto key = pop();
          as<Dict>(top(), "SETITEM").items.emplace_back(as<std::string>(key, "a key"), value);
          break;
        }
        case 'u': {
          auto items = to_mark();
          auto& dict = as<Dict>(top(), "SETITEMS");
          if (items.size() % 2) raise(Errc::bad_format, "'{}': a key without a value", name_);
          for (std::size_t i = 0; i < items.size(); i += 2)
            dict.items.emplace_back(as<std::string>(items[i], "a key"), items[i + 1]);
          break;
        }
        case 'b':
          pop();
          top();
          break;  // BUILD attaches _metadata; dropped
        case '.':
          return pop();
        default:
          raise(Errc::unsupported,
                "'{}': pickle opcode 0x{:02x} at byte {} is not one that a dictionary of tensors needs; refused", name_,
                op, in_.at() - 1);
      }
    }
  }

 private:
  template <class T>
  void push(T value) {
    stack_.push_back(std::make_shared<Value>(Value{std::move(value)}));
  }
  ValuePtr& top() {
    if (stack_.empty()) raise(Errc::bad_format, "'{}': the pickle takes from an empty stack", name_);
    return stack_.back();
  }
  ValuePtr pop() {
    auto value = top();
    stack_.pop_back();
    return value;
  }
  template <class T>
  T& as(const ValuePtr& value, const char* what) {
    if (!value || !std::holds_alternative<T>(value->v))
      raise(Errc::bad_format, "'{}': {} has another type than expected", name_, what);
    return std::get<T>(value->v);
  }
  std::string text(std::size_t size) {
    const auto raw = in_.take(size);
    return {reinterpret_cast<const char*>(raw.data()), raw.size()};
  }
  std::vector<ValuePtr> to_mark() {
    std::vector<ValuePtr> items;
    while (!std::holds_alternative<Mark>(top()->v)) items.push_back(pop());
    pop();
    return {items.rbegin(), items.rend()};
  }
  void recall(std::uint32_t index) {
    const auto found = memo_.find(index);
    if (found == memo_.end()) raise(Errc::bad_format, "'{}': memo {} was never written", name_, index);
    stack_.push_back(found->second);
  }
  void global() {
    auto module = in_.line();
    auto name = in_.line();
    auto full = module + "." + name;
    if (full != "collections.OrderedDict" && full != "torch._utils._rebuild_tensor_v2" &&
        full != "torch._utils._rebuild_parameter" && !storage_type(full))
      raise(Errc::unsupported, "'{}' asks for the Python object '{}'; only plain tensors are read, nothing is executed",
            name_, full);
    push(Global{std::move(full)});
  }
  void persistent() {
    const auto held = pop();  // owns the tuple while it is read
    auto& id = as<Tuple>(held, "a storage id").items;
    if (id.size() != 5 || as<std::string>(id[0], "a storage id") != "storage")
      raise(Errc::bad_format, "'{}': a persistent id that is no storage", name_);
    const auto dtype = storage_type(as<Global>(id[1], "a storage class").name);
    if (!dtype) raise(Errc::unsupported, "'{}': storage class '{}'", name_, std::get<Global>(id[1]->v).name);
    push(Storage{*dtype, as<std::string>(id[2], "a storage key"), as<std::int64_t>(id[4], "a storage size")});
  }
  void reduce() {
    auto arguments = pop();
    const auto callee = pop();
    const auto function = as<Global>(callee, "a function").name;
    auto& items = as<Tuple>(arguments, "the arguments").items;
    if (function == "collections.OrderedDict") {
      push(Dict{});
    } else if (function == "torch._utils._rebuild_parameter") {
      if (items.empty()) raise(Errc::bad_format, "'{}': a parameter without data", name_);
      stack_.push_back(items[0]);
    } else if (function == "torch._utils._rebuild_tensor_v2") {
      if (items.size() < 4) raise(Errc::bad_format, "'{}': a tensor with {} arguments", name_, items.size());
      Tensor tensor{as<Storage>(items[0], "a storage"), as<std::int64_t>(items[1], "an offset"), {}, {}};
      for (auto& d : as<Tuple>(items[2], "a shape").items) tensor.shape.push_back(as<std::int64_t>(d, "a dimension"));
      for (auto& d : as<Tuple>(items[3], "strides").items) tensor.stride.push_back(as<std::int64_t>(d, "a stride"));
      push(std::move(tensor));
    } else {
      raise(Errc::unsupported, "'{}' calls '{}'", name_, function);
    }
  }

  Cursor in_;
  const std::string& name_;
  std::vector<ValuePtr> stack_;
  std::unordered_map<std::uint32_t, ValuePtr> memo_;
};

TensorData resolve(const Tensor& tensor, const std::string& key, const std::map<std::string, Bytes>& storages,
                   const std::shared_ptr<const void>& owner, const std::string& file) {
  const auto found = storages.find(tensor.storage.key);
  if (found == storages.end())
    raise(Errc::bad_format, "'{}': tensor '{}' refers to storage '{}', which the archive lacks", file, key,
          tensor.storage.key);
  const std::size_t width = bytes_of(tensor.storage.dtype);
  const auto available = static_cast<std::int64_t>(found->second.size() / width);
  const auto count = elements_of(tensor.shape);
  if (!count || *count > (std::int64_t{1} << 40) || tensor.stride.size() != tensor.shape.size() ||
      tensor.shape.size() > 8)
    raise(Errc::bad_format, "'{}': tensor '{}' has shape {}", file, key, to_string(tensor.shape));
  std::int64_t last = tensor.offset, expected = 1;
  bool contiguous = true;
  for (std::size_t d = tensor.shape.size(); d-- > 0;) {
    if (tensor.stride[d] < 0 || tensor.stride[d] > available)
      raise(Errc::bad_format, "'{}': tensor '{}' has stride {}", file, key, tensor.stride[d]);
    if (tensor.shape[d] > 1) {
      contiguous = contiguous && tensor.stride[d] == expected;
      if (tensor.stride[d] != 0 && tensor.shape[d] - 1 > available / std::max<std::int64_t>(1, tensor.stride[d]))
        raise(Errc::bad_format, "'{}': tensor '{}' reaches past its storage of {} elements (truncated?)", file, key,
              available);
      last += (tensor.shape[d] - 1) * tensor.stride[d];
    }
    expected *= std::max<std::int64_t>(1, tensor.shape[d]);
  }
  if (tensor.offset < 0 || (*count > 0 && last >= available) || *count > std::max<std::int64_t>(available, 1) * 64)
    raise(Errc::bad_format, "'{}': tensor '{}' reaches to element {} of a storage of {} (truncated?)", file, key, last,
          available);
  TensorData out;
  out.dtype = tensor.storage.dtype;
  out.shape = tensor.shape;
  if (contiguous) {
    out.bytes = *count == 0 ? Bytes{}
                            : found->second.subspan(static_cast<std::size_t>(tensor.offset) * width,
                                                    static_cast<std::size_t>(*count) * width);
    out.owner = owner;
    return out;
  }
  auto copy = std::make_shared<std::vector<std::byte>>(static_cast<std::size_t>(*count) * width);
  std::vector<std::int64_t> index(tensor.shape.size(), 0);
  for (std::int64_t i = 0; i < *count; ++i) {
    std::int64_t at = tensor.offset;
    for (std::size_t d = 0; d < index.size(); ++d) at += index[d] * tensor.stride[d];
    std::memcpy(copy->data() + static_cast<std::size_t>(i) * width,
                found->second.data() + static_cast<std::size_t>(at) * width, width);
    for (std::size_t d = index.size(); d-- > 0;) {
      if (++index[d] < tensor.shape[d]) break;
      index[d] = 0;
    }
  }
  out.bytes = *copy;
  out.owner = copy;
  return out;
}

}  // namespace

Result<TensorMap> parse_torch_file(Bytes bytes, std::shared_ptr<const void> owner, const std::string& name) try {
  const auto entries = read_zip(bytes, name);
  const ZipEntry* pickle = nullptr;
  for (const auto& entry : entries)
    if (entry.name.ends_with("/data.pkl") || entry.name == "data.pkl") pickle = &entry;
  if (pickle == nullptr) return fail(Errc::bad_format, "'{}' holds no data.pkl; is it a torch file?", name);
  const auto prefix = pickle->name.substr(0, pickle->name.size() - 8);
  std::map<std::string, Bytes> storages;
  for (const auto& entry : entries) {
    if (entry.name.starts_with(prefix + "data/")) storages[entry.name.substr(prefix.size() + 5)] = entry.data;
    if (entry.name == prefix + "byteorder" &&
        std::string_view(reinterpret_cast<const char*>(entry.data.data()), entry.data.size()) != "little")
      return fail(Errc::unsupported, "'{}' is not little-endian", name);
  }
  const ValuePtr root = Pickle(pickle->data, name).run();
  const auto* dict = std::get_if<Dict>(&root->v);
  for (int depth = 0; dict != nullptr && depth < 2; ++depth) {
    const Dict* inner = nullptr;
    for (const auto& [key, value] : dict->items)
      if (key == "state_dict") inner = std::get_if<Dict>(&value->v);
    if (inner == nullptr) break;
    dict = inner;
  }
  if (dict == nullptr) return fail(Errc::bad_format, "'{}' does not hold a dictionary of tensors", name);
  bool module_prefix = true;
  for (const auto& [key, value] : dict->items)
    if (std::holds_alternative<Tensor>(value->v) && !key.starts_with("module.")) module_prefix = false;
  TensorMap out;
  for (const auto& [key, value] : dict->items)
    if (const auto* tensor = std::get_if<Tensor>(&value->v))
      out[module_prefix ? key.substr(7) : key] = resolve(*tensor, key, storages, owner, name);
  if (out.empty()) return fail(Errc::bad_format, "'{}' holds no tensors", name);
  return out;
} catch (const Failure& failure) {
  return tl::make_unexpected(failure.error);
}

Result<TensorMap> read_torch_file(const std::filesystem::path& path) {
  PARLANDO_TRY(auto file, MappedFile::open(path));
  auto owner = std::make_shared<const MappedFile>(std::move(file));
  return parse_torch_file(owner->bytes(), owner, path.string());
}

}  // namespace parlando::checkpoint
