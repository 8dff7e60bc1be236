#include "services/llm/model/rank_backend.hpp"

#include <ATen/ATen.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <bit>
#include <charconv>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <mutex>

#include "common/nn/threads.hpp"
#include "common/parallel/shm_communicator.hpp"
#include "kernels/linear/linear.hpp"
#include "services/llm/model/cpu_backend.hpp"

namespace parlando::llm {

namespace {

constexpr std::size_t kSlotBytes = std::size_t{1} << 20;
constexpr std::chrono::minutes kLoadMax{30};      // the largest part from a cold disk
constexpr std::chrono::seconds kExchangeMax{30};  // who is dead is noticed sooner
constexpr std::chrono::seconds kEndMax{2};        // of a rank that is told to end
constexpr milliseconds kLookEvery{50};            // for ranks that have ended

Time soon() { return SteadyClock().now() + kExchangeMax; }

Result<std::shared_ptr<const Step1>> load_part(const RankBackend::Options& o, int rank) {
  nn::use_threads(o.threads);
  if (o.part) return o.part(rank);
  return Step1::load(o.directory, o.format, rank, o.ranks);
}

/// What a rank says of a draw before its candidates.
struct Told {
  std::uint32_t count = 0;
  std::int32_t bad = -1;
  float bad_value = 0;
};
static_assert(sizeof(Told) == 12, "sent as it lies");

/// All ranks have their part, or the group is broken.
Result<void> meet(parallel::Communicator& group) {
  std::byte one{1};
  std::vector<std::byte> all(static_cast<std::size_t>(group.size()));
  return group.all_gather({&one, 1}, all, SteadyClock().now() + kLoadMax);
}

}  // namespace

RankPart::RankPart(std::shared_ptr<const Step1> part, std::int64_t blocks)
    : part_(std::move(part)), store_(part_->config().layers, blocks, part_->cache_layout()) {}

Result<std::vector<Drawn>> RankPart::run(const StepPlan& plan, parallel::Communicator& group) {
  auto done = [&]() -> Result<std::vector<Drawn>> {
    try {
      PARLANDO_DO(plan.check(part_->config(), store_.blocks()));
      store_.copy(plan.copies);
      const auto pieces = pieces_of(plan);
      PARLANDO_TRY(const auto hidden, part_->pass(store_, pieces, {}, &group));
      if (plan.draws.empty()) return std::vector<Drawn>();
      return draw(plan, drawn_logits(*part_, plan, hidden), group);
    } catch (const std::exception& e) {
      return fail(Errc::internal, "a plan could not be run: {}", e.what());
    }
  }();
  // The others would wait for what does not come.
  if (!done) group.abort(fmt::format("rank {}: {}", group.rank(), done.error().message));
  return done;
}

Result<std::vector<Drawn>> RankPart::draw(const StepPlan& plan, std::span<const float> logits,
                                          parallel::Communicator& group) {
  const auto vocabulary = part_->config().vocabulary;
  const auto first = part_->shard().vocabulary_rows.first, size = part_->shard().vocabulary_rows.count();
  const auto ranks = static_cast<std::size_t>(group.size());
  own_.resize(plan.draws.size());
  std::vector<Told> heads;
  std::vector<std::uint32_t> words;
  const float* row = logits.data();
  auto history = plan.histories.begin();
  for (std::size_t n = 0; n < plan.draws.size(); ++n) {
    const auto& d = plan.draws[n];
    auto& c = own_[n];
    candidates({row, static_cast<std::size_t>(size)}, first, vocabulary, {history, static_cast<std::size_t>(d.history)},
               d.sampling, c);
    row += size, history += d.history;
    heads.push_back({static_cast<std::uint32_t>(c.ids.size()), c.bad, c.bad_value});
    for (const auto value : c.values) words.push_back(std::bit_cast<std::uint32_t>(value));
    for (const auto id : c.ids) words.push_back(static_cast<std::uint32_t>(id));
  }
  // How many each has, then these, filled up to the longest.
  std::vector<Told> all_heads(ranks * heads.size());
  PARLANDO_DO(group.all_gather(std::as_bytes(std::span(heads)), std::as_writable_bytes(std::span(all_heads)), soon()));
  std::size_t most = 0;
  for (std::size_t r = 0; r < ranks; ++r) {
    std::size_t count = 0;
    for (std::size_t n = 0; n < heads.size(); ++n) count += 2 * all_heads[r * heads.size() + n].count;
    most = std::max(most, count);
  }
  words.resize(most);
  std::vector<std::uint32_t> all(ranks * most);
  if (most > 0)
    PARLANDO_DO(group.all_gather(std::as_bytes(std::span(words)), std::as_writable_bytes(std::span(all)), soon()));
  std::vector<Drawn> out;
  if (group.rank() != 0) return out;
  std::vector<const std::uint32_t*> next;
  for (std::size_t r = 0; r < ranks; ++r) next.push_back(all.data() + r * most);
  Candidates joined;
  for (std::size_t n = 0; n < plan.draws.size(); ++n) {
    joined.ids.clear(), joined.values.clear(), joined.bad = -1;
    for (std::size_t r = 0; r < ranks; ++r) {
      const auto& head = all_heads[r * heads.size() + n];
      if (joined.bad < 0) joined.bad = head.bad, joined.bad_value = head.bad_value;
      for (std::uint32_t i = 0; i < head.count; ++i) joined.values.push_back(std::bit_cast<float>(*next[r]++));
      for (std::uint32_t i = 0; i < head.count; ++i) joined.ids.push_back(static_cast<std::int32_t>(*next[r]++));
    }
    const auto id = sample(joined, vocabulary, plan.draws[n].sampling, plan.draws[n].position);
    out.push_back(id ? Drawn{*id} : Drawn{-1, id.error()});
  }
  return out;
}

std::string RankPart::follow(parallel::Communicator& group) {
  for (;;) {
    std::uint64_t size = 0;
    std::byte head[sizeof size];
    if (!group.broadcast(head, 0, Time::max())) return group.broken();
    std::memcpy(&size, head, sizeof size);
    if (size == 0) return {};
    if (size > StepPlan::kBytesMax) {
      group.abort(fmt::format("a plan of {} bytes, at most {} are taken", size, StepPlan::kBytesMax));
      return group.broken();
    }
    std::vector<std::byte> bytes(size);
    if (!group.broadcast(bytes, 0, soon())) return group.broken();
    const auto plan = StepPlan::decode(bytes);
    if (!plan) {
      group.abort(fmt::format("rank {}: {}", group.rank(), plan.error().message));
      return group.broken();
    }
    if (!run(*plan, group)) return group.broken();
  }
}

Result<std::unique_ptr<RankBackend>> RankBackend::start(const Options& o) {
  PARLANDO_TRY(auto region, parallel::SharedRegion::create(o.ranks, kSlotBytes));
  std::unique_ptr<RankBackend> out(new RankBackend);
  PARLANDO_TRY(out->group_, parallel::ShmCommunicator::join(region, 0, {}));
  for (int rank = 1; rank < o.ranks; ++rank) {
    if (o.program.empty()) {
      out->threads_.emplace_back([o, region, rank] {
        auto group = parallel::ShmCommunicator::join(region, rank, {});
        if (!group) return;
        const auto part = load_part(o, rank);
        if (!part) return (*group)->abort(part.error().message);
        try {
          RankPart own(*part, o.blocks);
          if (meet(**group)) own.follow(**group);
        } catch (const std::exception& e) {
          (*group)->abort(fmt::format("rank {}: {}", rank, e.what()));
        }
      });
      continue;
    }
    const auto words = std::vector<std::string>{o.program,
                                                "--rank",
                                                std::to_string(rank),
                                                "--region",
                                                std::to_string(region->descriptor()),
                                                "--model",
                                                o.directory.string(),
                                                "--format",
                                                std::string(kernels::name(o.format)),
                                                "--threads",
                                                std::to_string(o.threads),
                                                "--blocks",
                                                std::to_string(o.blocks),
                                                "--leader",
                                                std::to_string(::getpid())};
    std::vector<char*> pointers;
    for (const auto& word : words) pointers.push_back(const_cast<char*>(word.c_str()));
    pointers.push_back(nullptr);
    // The region's descriptor is for these children alone.
    posix_spawn_file_actions_t actions;
    ::posix_spawn_file_actions_init(&actions);
    ::posix_spawn_file_actions_adddup2(&actions, region->descriptor(), region->descriptor());
    pid_t process = -1;
    const int error = ::posix_spawn(&process, o.program.c_str(), &actions, nullptr, pointers.data(), environ);
    ::posix_spawn_file_actions_destroy(&actions);
    if (error != 0) {
      out->group_->abort("a rank could not be started");
      return fail(Errc::unavailable, "'{}' could not be started: {}", o.program, std::strerror(error));
    }
    out->processes_.push_back(process);
  }
  out->ended_.resize(out->processes_.size());
  if (!out->processes_.empty())
    out->watch_ = std::jthread([own = out.get()](const std::stop_token& stop) { own->watch(stop); });
  PARLANDO_TRY(out->model_, load_part(o, 0));
  try {
    out->part_ = std::make_unique<RankPart>(out->model_, o.blocks);
  } catch (const std::bad_alloc&) {
    return fail(Errc::overloaded, "there is no memory for {} blocks of the cache", o.blocks);
  }
  PARLANDO_DO(meet(*out->group_));
  return out;
}

/// A rank that ends breaks the group, also before it has joined.
void RankBackend::watch(const std::stop_token& stop) {
  std::mutex mutex;
  std::condition_variable_any stopped;
  for (std::unique_lock lock(mutex); !stop.stop_requested();
       stopped.wait_for(lock, stop, kLookEvery, [] { return false; }))
    for (std::size_t n = 0; n < processes_.size(); ++n) {
      int status = 0;
      if (ended_[n] || ::waitpid(processes_[n], &status, WNOHANG) != processes_[n]) continue;
      ended_[n] = true;
      group_->abort(WIFSIGNALED(status) ? fmt::format("rank {} was ended by signal {}", n + 1, WTERMSIG(status))
                                        : fmt::format("rank {} ended with exit code {}", n + 1, WEXITSTATUS(status)));
    }
}

RankBackend::~RankBackend() {
  watch_ = {};
  // Those who follow wait for a plan: one of no bytes is the end.
  std::byte end[sizeof(std::uint64_t)] = {};
  if (part_ && group_->broken().empty())
    (void)group_->broadcast(end, 0, soon());
  else
    group_->abort("the leader has ended");
  threads_.clear();
  const auto until = SteadyClock().now() + kEndMax;
  for (std::size_t n = 0; n < processes_.size(); ++n) {
    if (ended_[n]) continue;
    bool gone = false;
    while (!(gone = ::waitpid(processes_[n], nullptr, WNOHANG) != 0) && SteadyClock().now() < until)
      std::this_thread::sleep_for(milliseconds(5));
    if (gone) continue;
    ::kill(processes_[n], SIGKILL);
    while (::waitpid(processes_[n], nullptr, 0) < 0 && errno == EINTR) {
    }
  }
}

Result<std::vector<Drawn>> RankBackend::run(const StepPlan& plan) {
  // What every rank would refuse does not concern the group.
  PARLANDO_DO(plan.check(model_->config(), part_->blocks()));
  auto bytes = plan.encode();
  std::uint64_t size = bytes.size();
  std::byte head[sizeof size];
  std::memcpy(head, &size, sizeof size);
  PARLANDO_DO(group_->broadcast(head, 0, soon()));
  PARLANDO_DO(group_->broadcast(bytes, 0, soon()));
  return part_->run(plan, *group_);
}

namespace {
/// The word behind an option. @return empty when there is none
std::string option(int argc, char** argv, const char* name) {
  for (int i = 1; i + 1 < argc; ++i)
    if (std::strcmp(argv[i], name) == 0) return argv[i + 1];
  return {};
}
std::optional<WeightFormat> format_of(const std::string& text) {
  for (const auto format : {WeightFormat::f32, WeightFormat::bf16, WeightFormat::int8, WeightFormat::int4})
    if (text == kernels::name(format)) return format;
  return std::nullopt;
}
std::int64_t number(const std::string& text) {
  std::int64_t out = -1;
  const auto end = text.data() + text.size();
  const auto [at, error] = std::from_chars(text.data(), end, out);
  return error == std::errc() && at == end ? out : -1;
}
}  // namespace

bool is_rank(int argc, char** argv) { return argc > 1 && std::strcmp(argv[1], "--rank") == 0; }

int run_rank(int argc, char** argv) {
  // Without its leader it is nothing; who has died before this line is nobody's parent any more.
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (number(option(argc, argv, "--leader")) != ::getppid()) return 1;
  const auto failed = [](const std::string& why) {
    fmt::print(stderr, "parlando: {}\n", why);
    return 1;
  };
  const auto rank = number(option(argc, argv, "--rank")), region = number(option(argc, argv, "--region"));
  const auto threads = number(option(argc, argv, "--threads")), blocks = number(option(argc, argv, "--blocks"));
  const auto format = format_of(option(argc, argv, "--format"));
  if (rank < 1 || region < 0 || threads < 1 || blocks < 1 || !format)
    return failed("a rank is started by its leader, with --rank --region --model --format --threads --blocks");
  const auto shared = parallel::SharedRegion::attach(static_cast<int>(region));
  if (!shared) return failed(shared.error().message);
  ::close(static_cast<int>(region));
  const auto group = parallel::ShmCommunicator::join(*shared, static_cast<int>(rank), {});
  if (!group) return failed(group.error().message);
  const auto part = load_part({option(argc, argv, "--model"), *format, (*shared)->ranks(), static_cast<int>(threads)},
                              static_cast<int>(rank));
  if (!part) {
    (*group)->abort(fmt::format("rank {}: {}", rank, part.error().message));
    return failed(part.error().message);
  }
  try {
    RankPart own(*part, blocks);
    const auto met = meet(**group);
    const auto why = met ? own.follow(**group) : met.error().message;
    return why.empty() ? 0 : failed(fmt::format("rank {} ends: {}", rank, why));
  } catch (const std::exception& e) {
    (*group)->abort(fmt::format("rank {}: {}", rank, e.what()));
    return failed(e.what());
  }
}

}  // namespace parlando::llm
