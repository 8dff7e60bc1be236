#include "services/tts/model/effects.hpp"

#include <sox.h>

#include <algorithm>
#include <iterator>
#include <mutex>

namespace parlando::tts {

namespace {
/// libsox keeps global state.
std::mutex& sox_mutex() {
  static std::mutex mutex;
  return mutex;
}
Result<void> begin_sox() {
  static const bool ready = sox_init() == SOX_SUCCESS;
  if (!ready) return fail(Errc::internal, "libsox could not be initialised");
  sox_get_globals()->verbosity = 0;
  return {};
}
sox_sample_t to_sox(float value) {
  return static_cast<sox_sample_t>(std::clamp(static_cast<double>(value), -1.0, 1.0 - 1e-9) * 2147483648.0);
}
float from_sox(sox_sample_t value) { return static_cast<float>(value / 2147483648.0); }

struct Feed {
  std::span<const float> wave;
  std::size_t at = 0;
};
struct Drain {
  std::vector<float>* out;
};

int feed(sox_effect_t* e, sox_sample_t* to, std::size_t* count) {
  auto* f = *static_cast<Feed**>(e->priv);
  const auto n = std::min(*count, f->wave.size() - f->at);
  for (std::size_t i = 0; i < n; ++i) to[i] = to_sox(f->wave[f->at + i]);
  f->at += n;
  *count = n;
  return n > 0 ? SOX_SUCCESS : SOX_EOF;
}
int drain(sox_effect_t* e, const sox_sample_t* from, sox_sample_t*, std::size_t* in, std::size_t* out) {
  auto* d = *static_cast<Drain**>(e->priv);
  for (std::size_t i = 0; i < *in; ++i) d->out->push_back(static_cast<float>(from[i] / 2147483648.0));
  *out = 0;
  return SOX_SUCCESS;
}
const sox_effect_handler_t kFeed = {"input", nullptr, SOX_EFF_MCHAN, nullptr, nullptr,
                                    nullptr, feed,    nullptr,       nullptr, sizeof(Feed*)};
const sox_effect_handler_t kDrain = {"output", nullptr, SOX_EFF_MCHAN, nullptr, nullptr,
                                     drain,    nullptr, nullptr,       nullptr, sizeof(Drain*)};
}  // namespace

/// The tempo effect alone, outside of a chain: a chain pulls its input to the end at once.
struct EffectStream::Impl {
  sox_effect_t* tempo = nullptr;  ///< null: the speed is 1
  float gain = 1;
  ~Impl() {
    if (tempo != nullptr) sox_delete_effect(tempo);
  }
};

EffectStream::EffectStream(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
EffectStream::~EffectStream() = default;

Result<std::unique_ptr<EffectStream>> EffectStream::make(int rate, double speed, double volume) {
  if (!(speed >= 0.25 && speed <= 4)) return fail(Errc::invalid_argument, "speed is {}, expected 0.25…4", speed);
  if (!(volume >= 0.1 && volume <= 10)) return fail(Errc::invalid_argument, "volume is {}, expected 0.1…10", volume);
  auto impl = std::make_unique<Impl>();
  impl->gain = static_cast<float>(volume);
  if (speed != 1) {
    const std::lock_guard lock(sox_mutex());
    PARLANDO_DO(begin_sox());
    auto* tempo = impl->tempo = sox_create_effect(sox_find_effect("tempo"));
    if (tempo == nullptr) return fail(Errc::internal, "libsox has no tempo effect");
    tempo->flows = 1;
    tempo->in_signal = tempo->out_signal = {static_cast<double>(rate), 1, 32, SOX_UNSPEC, nullptr};
    auto ratio = fmt::format("{}", speed);
    char* arguments[] = {ratio.data()};
    if (sox_effect_options(tempo, 1, arguments) != SOX_SUCCESS || tempo->handler.start(tempo) != SOX_SUCCESS)
      return fail(Errc::internal, "libsox refused speed {}", speed);
  }
  return std::unique_ptr<EffectStream>(new EffectStream(std::move(impl)));
}

Result<std::vector<float>> EffectStream::push(std::span<const float> wave, bool last) {
  constexpr std::size_t kBlock = 4096;
  std::vector<float> out;
  if (auto* tempo = impl_->tempo; tempo == nullptr) {
    out.assign(wave.begin(), wave.end());
  } else {
    std::vector<sox_sample_t> in(wave.size()), block(kBlock);
    std::transform(wave.begin(), wave.end(), in.begin(), to_sox);
    const auto take = [&](std::size_t count) {
      std::transform(block.begin(), block.begin() + static_cast<std::ptrdiff_t>(count), std::back_inserter(out),
                     from_sox);
    };
    for (std::size_t at = 0;;) {
      auto taken = in.size() - at, made = kBlock;
      if (tempo->handler.flow(tempo, in.data() + at, block.data(), &taken, &made) != SOX_SUCCESS)
        return fail(Errc::internal, "libsox could not change the tempo");
      take(made);
      at += taken;
      if (at == in.size() && made == 0) break;
    }
    for (std::size_t made = kBlock; last && made > 0;) {
      made = kBlock;
      tempo->handler.drain(tempo, block.data(), &made);  // answers that it is at its end, and how much that made
      take(made);
    }
  }
  if (impl_->gain != 1)
    for (auto& v : out) v = std::clamp(v * impl_->gain, -1.0f, 1.0f);
  return out;
}

Result<std::vector<float>> apply_effects(std::span<const float> wave, int rate, double speed, double volume) {
  if (!(speed >= 0.5 && speed <= 2)) return fail(Errc::invalid_argument, "speed is {}, expected 0.5…2", speed);
  if (!(volume >= 0.1 && volume <= 10)) return fail(Errc::invalid_argument, "volume is {}, expected 0.1…10", volume);
  if ((speed == 1 && volume == 1) || wave.empty()) return std::vector<float>(wave.begin(), wave.end());
  const std::lock_guard lock(sox_mutex());
  PARLANDO_DO(begin_sox());
  sox_signalinfo_t signal{static_cast<double>(rate), 1, 32, wave.size(), nullptr};
  const sox_encodinginfo_t encoding{};
  auto* chain = sox_create_effects_chain(&encoding, &encoding);
  Feed source{wave, 0};
  std::vector<float> out;
  Drain sink{&out};
  bool good = true;
  auto add = [&](const sox_effect_handler_t* handler, void* state, const std::string& argument) {
    auto* effect = sox_create_effect(handler);
    if (state != nullptr) *static_cast<void**>(effect->priv) = state;
    char* arguments[] = {const_cast<char*>(argument.c_str())};
    if (state == nullptr) good = good && sox_effect_options(effect, 1, arguments) == SOX_SUCCESS;
    good = good && sox_add_effect(chain, effect, &signal, &signal) == SOX_SUCCESS;
    free(effect);
  };
  add(&kFeed, &source, "");
  if (speed != 1) add(sox_find_effect("tempo"), nullptr, fmt::format("{}", speed));
  if (volume != 1) add(sox_find_effect("vol"), nullptr, fmt::format("{}", volume));
  add(&kDrain, &sink, "");
  if (good) sox_flow_effects(chain, nullptr, nullptr);
  sox_delete_effects_chain(chain);
  if (!good) return fail(Errc::internal, "libsox refused speed {} or volume {}", speed, volume);
  return out;
}

}  // namespace parlando::tts
