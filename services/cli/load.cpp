#include "services/cli/load.hpp"

#include <signal.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "common/base/clock.hpp"
#include "common/base/mapped_file.hpp"
#include "services/cli/bench_setting.hpp"
#include "services/cli/dialogues.hpp"
#include "services/cli/realtime_speaker.hpp"
#include "services/cli/turn_figures.hpp"
#include "services/cli/ws_socket.hpp"

namespace parlando::cli {
namespace fs = std::filesystem;
using nlohmann::json;
using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

namespace {

constexpr milliseconds kLastAnswers{15'000};
constexpr int kGoodbyeMs = 200;  // for all sessions together
constexpr std::size_t kEvents = 64;

Result<std::vector<Utterance>> read_utterances(const std::vector<fs::path>& say) {
  std::vector<Utterance> out;
  for (const auto& path : say) {
    if (fs::is_directory(path)) {
      PARLANDO_TRY(auto all, read_recordings(path, RealtimePlan::kRate));
      std::move(all.begin(), all.end(), std::back_inserter(out));
    } else {
      PARLANDO_TRY(auto one, read_recording(path, RealtimePlan::kRate));
      out.push_back(std::move(one));
    }
  }
  if (out.empty()) return fail(Errc::invalid_argument, "there is no recording to be said");
  return out;
}

Result<WsUrl> target_of(const LoadOptions& options) {
  PARLANDO_TRY(auto url, WsUrl::parse(options.url));
  if (url.target == "/") url.target = "/v1/realtime";
  if (!options.model.empty() && url.target.find("model=") == std::string::npos)
    url.target += (url.target.find('?') == std::string::npos ? "?model=" : "&model=") + options.model;
  return url;
}

class Load {
 public:
  explicit Load(const LoadOptions& options) : options_(options), epoll_(::epoll_create1(EPOLL_CLOEXEC)) {}
  ~Load() { ::close(epoll_); }
  Load(const Load&) = delete;
  Load& operator=(const Load&) = delete;

  Result<json> run() {
    PARLANDO_TRY(const auto url, target_of(options_));
    PARLANDO_TRY(plan_.utterances, read_utterances(options_.say));
    plan_.detector = options_.detector, plan_.voice = options_.voice, plan_.instructions = options_.instructions;
    const double cpu = cpu_of_thread();
    begun_ = Clock::now();
    PARLANDO_DO(open_all(url));
    const auto end =
        Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(options_.seconds));
    spoken_since_ = Clock::now();
    while (Clock::now() < end && living() > 0 && !is_stopped()) pass(end);
    for (auto& one : all_)
      if (one->speaker) one->speaker->finish();
    const auto last = Clock::now() + kLastAnswers;
    while (Clock::now() < last && under_way() > 0 && !is_stopped()) pass(last);
    const double seconds = ms_between(spoken_since_, Clock::now()) / 1e3;
    for (auto& one : all_) settle(*one);
    show({});
    for (auto& one : all_)
      if (one->socket) one->socket->finish();
    for (auto& one : all_)
      if (one->socket) one->socket->close(kGoodbyeMs / std::max(1, options_.sessions));
    return figures(seconds, cpu_of_thread() - cpu);
  }

 private:
  struct One {
    int number = 0;
    std::unique_ptr<WsSocket> socket;
    std::optional<RealtimeSpeaker> speaker;
    bool writing = false;
    Clock::time_point next_frame;
  };

  std::size_t living() const {
    return static_cast<std::size_t>(
        std::count_if(all_.begin(), all_.end(), [](const auto& one) { return one->socket != nullptr; }));
  }
  std::size_t under_way() const {
    return static_cast<std::size_t>(std::count_if(
        all_.begin(), all_.end(), [](const auto& one) { return one->socket && !one->speaker->is_idle(); }));
  }
  static bool is_stopped() {
    sigset_t waiting;
    sigemptyset(&waiting);
    sigpending(&waiting);
    return sigismember(&waiting, SIGINT) == 1 || sigismember(&waiting, SIGTERM) == 1;
  }

  /// One after the other; those that stand speak meanwhile.
  Result<void> open_all(const WsUrl& url) {
    std::vector<std::string> headers;
    if (!options_.key.empty()) headers.push_back("Authorization: Bearer " + options_.key);
    Error first;
    for (int n = 0; n < options_.sessions && !is_stopped(); ++n) {
      const auto start = Clock::now();
      auto socket = WsSocket::open(url, headers);
      if (!socket) {
        ++errors_["not opened: " + socket.error().message];
        if (first.message.empty()) first = socket.error();
        if (all_.empty()) break;  // the next one would hear the same
        continue;
      }
      opening_.push_back(ms_between(start, Clock::now()));
      auto one = std::make_unique<One>();
      one->number = n;
      one->socket = *std::move(socket);
      one->speaker.emplace(plan_, static_cast<std::size_t>(n), Clock::now());
      epoll_event wanted{};
      wanted.events = EPOLLIN;
      wanted.data.ptr = one.get();
      ::epoll_ctl(epoll_, EPOLL_CTL_ADD, one->socket->fd(), &wanted);
      one->next_frame = Clock::now() + RealtimeSpeaker::kFrame;
      all_.push_back(std::move(one));
      read(*all_.back());  // what came together with the handshake's answer, nobody will wake us for
      pass(Clock::now());
    }
    if (all_.empty()) return fail(first.code, "no session can be opened at {}: {}", options_.url, first.message);
    return {};
  }

  /// Waits until something is due or arrives, and does it.
  void pass(Clock::time_point until) {
    for (const auto& one : all_)
      if (one->socket) until = std::min(until, one->next_frame);
    const auto wait =
        std::max<std::int64_t>(0, std::chrono::duration_cast<std::chrono::nanoseconds>(until - Clock::now()).count());
    const timespec timeout{wait / 1'000'000'000, wait % 1'000'000'000};
    epoll_event events[kEvents];
    const int count = ::epoll_pwait2(epoll_, events, kEvents, &timeout, nullptr);
    for (int i = 0; i < count; ++i) {
      auto& one = *static_cast<One*>(events[i].data.ptr);
      if (one.socket && (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0) read(one);
      if (one.socket && (events[i].events & EPOLLOUT) != 0) write(one);
    }
    const auto now = Clock::now();
    for (const auto& one : all_) {
      if (!one->socket || now < one->next_frame) continue;
      late_.push_back(ms_between(one->next_frame, now));
      one->next_frame += RealtimeSpeaker::kFrame;
      say(*one, one->speaker->on_frame(now));
      settle(*one);
    }
    if (now - told_ > milliseconds(500)) {
      told_ = now;
      show(fmt::format("{:.0f} s, {} of {} sessions, {} turns, {} errors", ms_between(begun_, now) / 1e3, living(),
                       options_.sessions, turns_.size(), error_count()));
    }
  }

  void read(One& one) {
    const auto done = one.socket->read();
    while (one.socket) {
      const auto message = one.socket->next();
      if (!message) break;
      if (!message->binary) say(one, one.speaker->on_event(message->payload, Clock::now()));
    }
    if (!done) lose(one, done.error().message);
  }
  void write(One& one) {
    if (const auto done = one.socket->write(); !done) return lose(one, done.error().message);
    watch(one);
  }
  void say(One& one, const std::vector<std::string>& messages) {
    for (const auto& message : messages) {
      if (!one.socket) return;
      if (const auto done = one.socket->send(message, false); !done) return lose(one, done.error().message);
    }
    if (one.socket) watch(one);
  }
  void watch(One& one) {
    if (one.writing == one.socket->wants_write()) return;
    one.writing = !one.writing;
    epoll_event wanted{};
    wanted.events = one.writing ? EPOLLIN | EPOLLOUT : EPOLLIN;
    wanted.data.ptr = &one;
    ::epoll_ctl(epoll_, EPOLL_CTL_MOD, one.socket->fd(), &wanted);
  }
  /// Takes its turns, and gives it up when no session can be agreed on.
  void settle(One& one) {
    if (!one.speaker) return;
    for (auto& turn : one.speaker->take()) {
      if (!turn.failure.empty()) ++errors_[turn.failure];
      turns_.push_back({one.number, std::move(turn)});
    }
    if (one.socket && one.speaker->failure()) lose(one, *one.speaker->failure());
  }
  void lose(One& one, const std::string& why) {
    if (!one.socket) return;
    ++lost_;
    ++errors_["lost: " + why];
    one.socket.reset();
  }

  std::map<std::string, std::int64_t> all_errors() const {
    auto out = errors_;
    for (const auto& one : all_)
      if (one->speaker)
        for (const auto& [words, count] : one->speaker->errors()) out["error: " + words] += count;
    return out;
  }
  std::int64_t error_count() const {
    std::int64_t sum = 0;
    for (const auto& [words, count] : all_errors()) sum += count;
    return sum;
  }

  json figures(double seconds, double cpu) const {
    std::vector<double> latency, ends;
    double sound = 0;
    std::int64_t underruns = 0, cut = 0;
    json all = json::array();
    for (const auto& [session, turn] : turns_) {
      sound += turn.audio_seconds;
      underruns += turn.underruns;
      cut += turn.cut_off;
      if (!turn.cut_off) latency.push_back(turn.first_audio), ends.push_back(turn.end_told);
      json one{{"session", session}, {"at_s", ms_between(begun_, turn.asked) / 1e3}, {"underruns", turn.underruns}};
      one["latency_ms"] = std::isnan(turn.first_audio) || turn.cut_off ? json() : json(turn.first_audio);
      if (turn.cut_off) one["cut_off"] = true;
      if (!turn.failure.empty()) one["failure"] = turn.failure;
      all.push_back(std::move(one));
    }
    json errors = json::object();
    for (const auto& [words, count] : all_errors()) errors[words] = count;
    return {{"url", options_.url},
            {"detector", options_.detector},
            {"seconds", seconds},
            {"sessions", {{"wanted", options_.sessions}, {"opened", opening_.size()}, {"lost", lost_}}},
            {"turns", turns_.size()},
            {"turn_latency_ms", distribution(latency)},
            {"end_told_ms", distribution(ends)},
            {"opening_ms", distribution(opening_)},
            {"audio_seconds", sound},
            {"underruns", underruns},
            {"cut_off", cut},
            {"errors", errors},
            {"own_lateness_ms", distribution(late_)},
            {"own_cores", seconds > 0 ? cpu / seconds : 0.0},
            {"all", all}};
  }

  static void show(const std::string& text) {
    if (::isatty(2)) std::fprintf(stderr, "\r\033[K%s", text.c_str());
  }

  const LoadOptions& options_;
  int epoll_;
  RealtimePlan plan_;
  std::vector<std::unique_ptr<One>> all_;
  std::vector<std::pair<int, RealtimeTurn>> turns_;
  std::map<std::string, std::int64_t> errors_;
  std::vector<double> opening_, late_;
  std::int64_t lost_ = 0;
  Clock::time_point begun_, spoken_since_, told_;
};

}  // namespace

Result<json> run_load(const LoadOptions& options) {
  // Ctrl-C waits until it is asked for: what was measured is told.
  sigset_t stop, before;
  sigemptyset(&stop);
  sigaddset(&stop, SIGINT);
  sigaddset(&stop, SIGTERM);
  ::pthread_sigmask(SIG_BLOCK, &stop, &before);
  auto done = Load(options).run();
  const timespec now{0, 0};
  while (::sigtimedwait(&stop, nullptr, &now) > 0) {
  }
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (done && !options.html.empty()) {
    std::error_code code;
    if (options.html.has_parent_path()) fs::create_directories(options.html.parent_path(), code);
    PARLANDO_DO(write_file(options.html, load_page(*done)));
  }
  return done;
}

}  // namespace parlando::cli
