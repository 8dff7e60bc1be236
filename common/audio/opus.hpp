#pragma once
/// Opus packets, mono, one by one as they travel over a connection that loses none (libopus). Files of Opus are another
/// matter: `audio_file.hpp`.
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "common/base/result.hpp"

struct OpusDecoder;
struct OpusEncoder;

namespace parlando::audio {

inline constexpr std::size_t kOpusPacketBytesMax = 4000;  ///< of a packet, as libopus recommends

class OpusReader {
 public:
  /// @param rate  Hz, of what comes out: 8000, 12000, 16000, 24000 or 48000
  /// @error Errc::unsupported
  static Result<OpusReader> make(int rate);
  /// @param packet  2.5 to 120 ms of sound, of any rate. @error Errc::bad_format; what comes next is read all the same
  Result<std::vector<std::int16_t>> push(std::span<const std::byte> packet);

 private:
  struct Free {
    void operator()(OpusDecoder* decoder) const;
  };
  int rate_ = 0;
  std::unique_ptr<OpusDecoder, Free> decoder_;
};

class OpusWriter {
 public:
  static constexpr int kFrameMs = 20;
  /// @param rate  Hz, of what goes in, as above. @error Errc::unsupported
  static Result<OpusWriter> make(int rate, int bits_per_second);
  /// Samples in any pieces. @return the packets of 20 ms that are whole
  std::vector<std::vector<std::byte>> push(std::span<const std::int16_t> samples);
  /// The rest as a packet, filled up with silence; nothing when there is none.
  std::vector<std::vector<std::byte>> finish();

 private:
  struct Free {
    void operator()(OpusEncoder* encoder) const;
  };
  std::vector<std::byte> encode(const std::int16_t* frame);
  std::size_t frame_samples_ = 0;
  std::unique_ptr<OpusEncoder, Free> encoder_;
  std::vector<std::int16_t> waiting_;
};

}  // namespace parlando::audio
