#include "services/tts/model/effects.hpp"

#include <sox.h>

#include <algorithm>
#include <mutex>

namespace parlando::tts {

namespace {
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
  for (std::size_t i = 0; i < n; ++i)
    to[i] =
        static_cast<sox_sample_t>(std::clamp(static_cast<double>(f->wave[f->at + i]), -1.0, 1.0 - 1e-9) * 2147483648.0);
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

Result<std::vector<float>> apply_effects(std::span<const float> wave, int rate, double speed, double volume) {
  if (!(speed >= 0.5 && speed <= 2)) return fail(Errc::invalid_argument, "speed is {}, expected 0.5…2", speed);
  if (!(volume >= 0.1 && volume <= 10)) return fail(Errc::invalid_argument, "volume is {}, expected 0.1…10", volume);
  if ((speed == 1 && volume == 1) || wave.empty()) return std::vector<float>(wave.begin(), wave.end());
  static std::mutex mutex;  // libsox keeps global state
  const std::lock_guard lock(mutex);
  static const bool ready = sox_init() == SOX_SUCCESS;
  if (!ready) return fail(Errc::internal, "libsox could not be initialised");
  sox_get_globals()->verbosity = 0;
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
