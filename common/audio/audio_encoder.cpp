#include "common/audio/audio_encoder.hpp"

#include <sndfile.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>

namespace parlando::audio {
namespace {

struct Name {
  std::string_view name, media_type;
  Encoding encoding;
};
constexpr std::array<Name, 5> kNames{{{"wav", "audio/wav", Encoding::wav},
                                      {"pcm", "audio/pcm", Encoding::pcm},
                                      {"flac", "audio/flac", Encoding::flac},
                                      {"opus", "audio/ogg", Encoding::opus},
                                      {"mp3", "audio/mpeg", Encoding::mp3}}};

// Of libsndfile 1.1 and later; the headers of earlier ones have no names for them, and `sf_format_check` says no.
constexpr int kMp3 = 0x230000 | 0x0082;
constexpr int kSetOggPageLatencyMs = 0x1302, kSetBitrateMode = 0x1305;

/// Bytes as they are, behind a header whose sizes say "until the end".
class Plain final : public Encoder {
 public:
  Plain(bool wav, int rate) {
    if (!wav) return;
    head_.resize(44);
    const auto put = [&](std::size_t at, auto value) { std::memcpy(head_.data() + at, &value, sizeof value); };
    constexpr auto kUnknown = std::numeric_limits<std::uint32_t>::max();
    std::memcpy(head_.data(), "RIFF", 4);
    put(4, kUnknown);
    std::memcpy(head_.data() + 8, "WAVEfmt ", 8);
    put(16, std::uint32_t{16});
    put(20, std::uint16_t{1});  // PCM
    put(22, std::uint16_t{1});  // mono
    put(24, static_cast<std::uint32_t>(rate));
    put(28, static_cast<std::uint32_t>(2 * rate));
    put(32, std::uint16_t{2});
    put(34, std::uint16_t{16});
    std::memcpy(head_.data() + 36, "data", 4);
    put(40, kUnknown);
  }
  std::string push(std::span<const std::int16_t> pcm) override {
    auto out = std::exchange(head_, {});
    out.append(reinterpret_cast<const char*>(pcm.data()), pcm.size_bytes());
    return out;
  }
  std::string finish() override { return std::exchange(head_, {}); }

 private:
  std::string head_;
};

/// What libsndfile writes. Bytes that have left cannot be changed: libraries go back at the end to note the length,
/// which readers of streams do without.
struct Sink {
  std::string bytes;
  sf_count_t left = 0, at = 0;

  sf_count_t size() const { return left + static_cast<sf_count_t>(bytes.size()); }
  void write(const char* from, sf_count_t count) {
    if (at < left) {
      const auto lost = std::min(count, left - at);
      at += lost, from += lost, count -= lost;
    }
    if (count == 0) return;
    const auto start = static_cast<std::size_t>(at - left);
    if (start + static_cast<std::size_t>(count) > bytes.size()) bytes.resize(start + static_cast<std::size_t>(count));
    std::memcpy(bytes.data() + start, from, static_cast<std::size_t>(count));
    at += count;
  }
  std::string take() {
    left = size();
    return std::exchange(bytes, {});
  }
};

SF_VIRTUAL_IO sink_io() {
  SF_VIRTUAL_IO io{};
  io.get_filelen = [](void* p) { return static_cast<Sink*>(p)->size(); };
  io.seek = [](sf_count_t offset, int whence, void* p) {
    auto* s = static_cast<Sink*>(p);
    const sf_count_t base = whence == SEEK_SET ? 0 : whence == SEEK_CUR ? s->at : s->size();
    s->at = std::clamp<sf_count_t>(base + offset, 0, s->size());
    return s->at;
  };
  io.read = [](void*, sf_count_t, void*) { return sf_count_t{0}; };
  io.write = [](const void* from, sf_count_t count, void* p) {
    static_cast<Sink*>(p)->write(static_cast<const char*>(from), count);
    return count;
  };
  io.tell = [](void* p) { return static_cast<Sink*>(p)->at; };
  return io;
}

class Compressed final : public Encoder {
 public:
  Result<void> open(Encoding encoding, int rate) {
    SF_INFO info{};
    info.samplerate = rate;
    info.channels = 1;
    if (encoding == Encoding::flac) info.format = SF_FORMAT_FLAC | SF_FORMAT_PCM_16;
    if (encoding == Encoding::opus) info.format = SF_FORMAT_OGG | SF_FORMAT_OPUS;
    if (encoding == Encoding::mp3) info.format = kMp3;
    auto io = sink_io();
    if (info.format != 0 && sf_format_check(&info) != 0) file_.reset(sf_open_virtual(&io, SFM_WRITE, &info, &sink_));
    if (!file_)
      return fail(Errc::unsupported, "{} at {} Hz is not written by the sound library of this machine",
                  kNames[static_cast<std::size_t>(encoding)].name, rate);
    // The table of a variable rate stands at the head of the file, which has left by the time that it is known; without
    // it readers guess the length wrongly.
    int constant = 0;
    if (encoding == Encoding::mp3) sf_command(file_.get(), kSetBitrateMode, &constant, sizeof constant);
    double level = 0.4;  // 96 kbit/s at 24 kHz
    if (encoding == Encoding::mp3) sf_command(file_.get(), SFC_SET_COMPRESSION_LEVEL, &level, sizeof level);
    double page_ms = 100;
    if (encoding == Encoding::opus) sf_command(file_.get(), kSetOggPageLatencyMs, &page_ms, sizeof page_ms);
    return {};
  }
  std::string push(std::span<const std::int16_t> pcm) override {
    sf_write_short(file_.get(), pcm.data(), static_cast<sf_count_t>(pcm.size()));
    return sink_.take();
  }
  std::string finish() override {
    file_.reset();
    return sink_.take();
  }

 private:
  Sink sink_;
  std::unique_ptr<SNDFILE, int (*)(SNDFILE*)> file_{nullptr, sf_close};
};

}  // namespace

std::optional<Encoding> encoding_of(std::string_view name) {
  if (name == "pcm16") name = "pcm";
  for (const auto& entry : kNames)
    if (entry.name == name) return entry.encoding;
  return {};
}

std::string_view media_type(Encoding encoding) { return kNames[static_cast<std::size_t>(encoding)].media_type; }

Result<std::unique_ptr<Encoder>> Encoder::make(Encoding encoding, int rate) {
  if (encoding == Encoding::wav || encoding == Encoding::pcm)
    return std::unique_ptr<Encoder>(std::make_unique<Plain>(encoding == Encoding::wav, rate));
  auto out = std::make_unique<Compressed>();
  PARLANDO_DO(out->open(encoding, rate));
  return std::unique_ptr<Encoder>(std::move(out));
}

void set_wav_sizes(std::string& file) {
  constexpr std::size_t kHeadBytes = 44;
  if (file.size() < kHeadBytes) return;
  const auto data = static_cast<std::uint32_t>(file.size() - kHeadBytes), riff = data + 36;
  std::memcpy(file.data() + 4, &riff, sizeof riff);
  std::memcpy(file.data() + 40, &data, sizeof data);
}

}  // namespace parlando::audio
