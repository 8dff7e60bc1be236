#include "common/audio/audio_file.hpp"

#include <sndfile.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>

#include "common/base/mapped_file.hpp"

namespace parlando::audio {
namespace {

struct Memory {
  std::span<const std::byte> bytes;
  sf_count_t at = 0;
};

SF_VIRTUAL_IO memory_io() {
  SF_VIRTUAL_IO io{};
  io.get_filelen = [](void* p) { return static_cast<sf_count_t>(static_cast<Memory*>(p)->bytes.size()); };
  io.seek = [](sf_count_t offset, int whence, void* p) {
    auto* m = static_cast<Memory*>(p);
    const auto size = static_cast<sf_count_t>(m->bytes.size());
    const sf_count_t base = whence == SEEK_SET ? 0 : whence == SEEK_CUR ? m->at : size;
    m->at = std::clamp<sf_count_t>(base + offset, 0, size);
    return m->at;
  };
  io.read = [](void* to, sf_count_t count, void* p) {
    auto* m = static_cast<Memory*>(p);
    count = std::clamp<sf_count_t>(count, 0, static_cast<sf_count_t>(m->bytes.size()) - m->at);
    std::memcpy(to, m->bytes.data() + m->at, static_cast<std::size_t>(count));
    m->at += count;
    return count;
  };
  io.write = [](const void*, sf_count_t, void*) { return sf_count_t{0}; };
  io.tell = [](void* p) { return static_cast<Memory*>(p)->at; };
  return io;
}

using File = std::unique_ptr<SNDFILE, int (*)(SNDFILE*)>;

/// @param memory  is where the file reads from, and outlives it
Result<File> open_file(Memory& memory, SF_INFO& info, const std::string& name) {
  if (memory.bytes.empty()) return fail(Errc::bad_format, "'{}' is empty", name);
  auto io = memory_io();
  File file(sf_open_virtual(&io, SFM_READ, &info, &memory), sf_close);
  if (!file)
    return fail(Errc::bad_format, "'{}' is not an audio file that can be read ({})", name, sf_strerror(nullptr));
  if (info.channels < 1 || info.channels > 32 || info.samplerate < 4000 || info.samplerate > 384000)
    return fail(Errc::bad_format, "'{}' has {} channels at {} Hz; 1-32 channels at 4-384 kHz are read", name,
                info.channels, info.samplerate);
  return file;
}

/// Frames that a file can have: writers that do not know the length announce the most that there is.
sf_count_t frames_of(const SF_INFO& info, std::size_t bytes) {
  static const std::map<int, std::size_t> kSampleBytes{
      {SF_FORMAT_PCM_S8, 1}, {SF_FORMAT_PCM_U8, 1}, {SF_FORMAT_ULAW, 1},  {SF_FORMAT_ALAW, 1},  {SF_FORMAT_PCM_16, 2},
      {SF_FORMAT_PCM_24, 3}, {SF_FORMAT_PCM_32, 4}, {SF_FORMAT_FLOAT, 4}, {SF_FORMAT_DOUBLE, 8}};
  const auto found = kSampleBytes.find(info.format & SF_FORMAT_SUBMASK);
  const bool compressed = (info.format & SF_FORMAT_TYPEMASK) == SF_FORMAT_FLAC;
  if (found == kSampleBytes.end() || compressed) return info.frames;
  const auto most = bytes / (found->second * static_cast<std::size_t>(info.channels));
  return std::min(info.frames, static_cast<sf_count_t>(most));
}

/// Appends at most `count` frames, the mean over their channels. @return how many
std::size_t read_frames(SNDFILE* file, int channels, std::size_t count, std::vector<float>& block,
                        std::vector<float>& out) {
  block.resize(count * static_cast<std::size_t>(channels));
  const auto got = std::max<sf_count_t>(0, sf_readf_float(file, block.data(), static_cast<sf_count_t>(count)));
  for (sf_count_t f = 0; f < got; ++f) {
    float sum = 0;
    for (int c = 0; c < channels; ++c)
      sum += block[static_cast<std::size_t>(f) * static_cast<std::size_t>(channels) + static_cast<std::size_t>(c)];
    const float mean = sum / static_cast<float>(channels);
    out.push_back(std::isfinite(mean) ? mean : 0.0f);
  }
  return static_cast<std::size_t>(got);
}

}  // namespace

Result<Recording> read_audio(std::span<const std::byte> bytes, const std::string& name, double seconds_max) {
  Memory memory{bytes};
  SF_INFO info{};
  PARLANDO_TRY(const auto file, open_file(memory, info, name));
  Recording out;
  out.rate = info.samplerate;
  const auto frames_max = static_cast<std::size_t>(seconds_max * info.samplerate);
  std::vector<float> block;
  while (read_frames(file.get(), info.channels, 4096, block, out.wave) > 0)
    if (out.wave.size() > frames_max) return fail(Errc::bad_format, "'{}' is longer than {} s", name, seconds_max);
  if (out.wave.empty()) return fail(Errc::bad_format, "'{}' holds no samples", name);
  return out;
}

struct Reader::State {
  std::string bytes;
  Memory memory;
  SF_INFO info{};
  File file{nullptr, sf_close};
  std::vector<float> block;
  std::size_t count = 0, most = 0;  ///< frames read so far, and that may be read
  bool too_long = false;
  bool knows_length() const { return info.frames != SF_COUNT_MAX; }
};

Reader::Reader(std::unique_ptr<State> state) : state_(std::move(state)) {}
Reader::Reader(Reader&&) noexcept = default;
Reader& Reader::operator=(Reader&&) noexcept = default;
Reader::~Reader() = default;

Result<Reader> Reader::open(std::string bytes, const std::string& name, double seconds_max) {
  auto state = std::make_unique<State>();
  state->bytes = std::move(bytes);
  state->memory.bytes = std::as_bytes(std::span(state->bytes));
  PARLANDO_TRY(state->file, open_file(state->memory, state->info, name));
  state->info.frames = frames_of(state->info, state->bytes.size());
  const auto seconds = static_cast<double>(state->info.frames) / state->info.samplerate;
  if (state->info.frames == 0) return fail(Errc::bad_format, "'{}' holds no samples", name);
  if (state->knows_length() && seconds > seconds_max)
    return fail(Errc::bad_format, "'{}' lasts {:.1f} s, expected at most {} s", name, seconds, seconds_max);
  state->most = static_cast<std::size_t>(seconds_max * state->info.samplerate);
  return Reader(std::move(state));
}

int Reader::rate() const { return state_->info.samplerate; }
double Reader::seconds() const {
  const auto frames =
      state_->knows_length() ? static_cast<double>(state_->info.frames) : static_cast<double>(state_->count);
  return frames / state_->info.samplerate;
}

bool Reader::is_too_long() const { return state_->too_long; }

std::vector<float> Reader::read(std::size_t count) {
  std::vector<float> out;
  auto& s = *state_;
  if (s.too_long) return out;
  s.count += read_frames(s.file.get(), s.info.channels, count, s.block, out);
  s.too_long = s.count > s.most;
  if (s.too_long) out.clear();
  return out;
}

Result<Recording> read_audio(const std::filesystem::path& path, double seconds_max) {
  PARLANDO_TRY(const auto file, MappedFile::open(path));
  return read_audio(file.bytes(), path.string(), seconds_max);
}

std::string encode_wav(std::span<const float> wave, int rate) {
  std::string out(44 + 2 * wave.size(), '\0');
  auto put = [&](std::size_t at, auto value) { std::memcpy(out.data() + at, &value, sizeof value); };
  const auto data = static_cast<std::uint32_t>(2 * wave.size());
  std::memcpy(out.data(), "RIFF", 4), put(4, data + 36), std::memcpy(out.data() + 8, "WAVEfmt ", 8),
      put(16, std::uint32_t{16});
  put(20, std::uint16_t{1}), put(22, std::uint16_t{1}), put(24, static_cast<std::uint32_t>(rate)),
      put(28, static_cast<std::uint32_t>(2 * rate));
  put(32, std::uint16_t{2}), put(34, std::uint16_t{16}), std::memcpy(out.data() + 36, "data", 4), put(40, data);
  for (std::size_t i = 0; i < wave.size(); ++i)
    put(44 + 2 * i, static_cast<std::int16_t>(std::lrint(std::clamp(wave[i], -1.0f, 1.0f) * 32767.0f)));
  return out;
}

Result<void> write_wav(const std::filesystem::path& path, std::span<const float> wave, int rate) {
  return write_file(path, encode_wav(wave, rate));
}

}  // namespace parlando::audio
