#include "services/cli/engine.hpp"

#include <algorithm>
#include <future>

#include "common/nn/threads.hpp"
#include "services/cli/plan.hpp"

namespace parlando::cli {

namespace {

/// In the place of a role that nobody asks for: callers see that it is there, and are refused.
class AbsentCore final : public service::Core {
 public:
  void on_message(const std::string& peer, protocol::Message message, Time) override {
    if (message.head.type == protocol::MessageType::close) return;
    answer_error(peer, message.head, {Errc::unsupported, "this command has started no service for that"});
  }
};

Result<std::unique_ptr<service::Core>> make(const service::Instance& instance, int threads) {
  const auto known = definitions();
  nn::use_threads(threads);  // of this thread: loading computes, too
  const auto& definition =
      *std::find_if(known.begin(), known.end(), [&](const auto& d) { return d.name == instance.service; });
  return service::make_core(definition, instance);
}

}  // namespace

Result<std::unique_ptr<Engine>> Engine::start(const std::vector<service::Instance>& instances, int threads,
                                              const std::set<std::string>& absent) {
  std::vector<std::future<Result<std::unique_ptr<service::Core>>>> loading;
  for (const auto& instance : instances) {
    if (absent.contains(instance.role))
      loading.push_back(std::async(std::launch::deferred, []() -> Result<std::unique_ptr<service::Core>> {
        return std::make_unique<AbsentCore>();
      }));
    else
      loading.push_back(std::async(std::launch::async, make, std::cref(instance), threads));
  }
  nn::use_threads(threads);
  std::unique_ptr<Engine> out(new Engine);
  for (std::size_t n = 0; n < instances.size(); ++n) {
    PARLANDO_TRY(auto core, loading[n].get());
    const auto& instance = instances[n];
    PARLANDO_TRY(auto host, service::Host::start(out->runtime_, instance.role, instance.wire, std::move(core)));
    if (instance.service == "gateway" && out->front_ == nullptr) out->front_ = host.get();
    out->hosts_.push_back(std::move(host));
  }
  return out;
}

Engine::~Engine() {
  while (!hosts_.empty()) hosts_.pop_back();
}

bool Engine::ready(std::string* why) const {
  return std::all_of(hosts_.begin(), hosts_.end(), [&](const auto& h) { return h->ready(why); });
}

/// Front ends first: a service may be needed until nobody is left who could ask.
bool Engine::drain() {
  return std::all_of(hosts_.rbegin(), hosts_.rend(), [](const auto& h) { return h->drain(); });
}

}  // namespace parlando::cli
