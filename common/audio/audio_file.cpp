#include "common/audio/audio_file.hpp"

#include <sndfile.h>

#include <algorithm>
#include <cmath>
#include <cstring>
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

}  // namespace

Result<Recording> read_audio(std::span<const std::byte> bytes, const std::string& name, double seconds_max) {
  if (bytes.empty()) return fail(Errc::bad_format, "'{}' is empty", name);
  Memory memory{bytes};
  auto io = memory_io();
  SF_INFO info{};
  const std::unique_ptr<SNDFILE, int (*)(SNDFILE*)> file(sf_open_virtual(&io, SFM_READ, &info, &memory), sf_close);
  if (!file)
    return fail(Errc::bad_format, "'{}' is not an audio file that can be read ({})", name, sf_strerror(nullptr));
  if (info.channels < 1 || info.channels > 32 || info.samplerate < 4000 || info.samplerate > 384000)
    return fail(Errc::bad_format, "'{}' has {} channels at {} Hz; 1-32 channels at 4-384 kHz are read", name,
                info.channels, info.samplerate);
  Recording out;
  out.rate = info.samplerate;
  const auto frames_max = static_cast<std::size_t>(seconds_max * info.samplerate);
  std::vector<float> block(static_cast<std::size_t>(4096) * info.channels);
  while (true) {
    const auto got = sf_readf_float(file.get(), block.data(), 4096);
    if (got <= 0) break;
    if (out.wave.size() + static_cast<std::size_t>(got) > frames_max)
      return fail(Errc::bad_format, "'{}' is longer than {} s", name, seconds_max);
    for (sf_count_t f = 0; f < got; ++f) {
      float sum = 0;
      for (int c = 0; c < info.channels; ++c) sum += block[static_cast<std::size_t>(f) * info.channels + c];
      const float mean = sum / static_cast<float>(info.channels);
      out.wave.push_back(std::isfinite(mean) ? mean : 0.0f);
    }
  }
  if (out.wave.empty()) return fail(Errc::bad_format, "'{}' holds no samples", name);
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
