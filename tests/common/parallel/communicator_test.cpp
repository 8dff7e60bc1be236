#define BOOST_TEST_MODULE communicator
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <boost/test/unit_test.hpp>
#include <cmath>
#include <functional>
#include <random>
#include <thread>
#include <vector>

#include "common/parallel/beat_watch.hpp"
#include "common/parallel/local_communicator.hpp"
#include "common/parallel/shm_communicator.hpp"
#include "tests/support/temporary_directory.hpp"

namespace parlando::parallel {
namespace {

using Options = ShmCommunicator::Options;

/// Far away: what a test is not about must not end it on a slow machine.
Time later() { return SteadyClock().now() + std::chrono::minutes(5); }
constexpr Options kPatient{.beat = milliseconds(1000), .looks = 300};
/// A rank that is dead is noticed soon.
constexpr Options kQuick{.beat = milliseconds(5), .looks = 20};

std::shared_ptr<SharedRegion> region(int ranks, std::size_t slot_bytes) {
  auto out = SharedRegion::create(ranks, slot_bytes);
  BOOST_REQUIRE(out);
  return *out;
}

/// What went wrong first; an empty string where nothing did. (Boost's checks are for one thread.)
using Work = std::function<std::string(Communicator&)>;

std::string run_ranks(const std::shared_ptr<SharedRegion>& shared, const Work& work, Options options = kPatient) {
  const auto ranks = static_cast<std::size_t>(shared->ranks());
  std::vector<std::unique_ptr<ShmCommunicator>> group;
  for (std::size_t r = 0; r < ranks; ++r) {
    auto joined = ShmCommunicator::join(shared, static_cast<int>(r), options);
    BOOST_REQUIRE(joined);
    group.push_back(*std::move(joined));
  }
  std::vector<std::string> wrong(ranks);
  {
    std::vector<std::jthread> threads;
    for (std::size_t r = 0; r < ranks; ++r) threads.emplace_back([&, r] { wrong[r] = work(*group[r]); });
  }
  for (std::size_t r = 0; r < ranks; ++r)
    if (!wrong[r].empty()) return fmt::format("rank {}: {}", r, wrong[r]);
  return {};
}

std::vector<float> noise(std::size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> out(count);
  for (auto& x : out) x = normal(random) * std::exp(4 * normal(random));
  return out;
}

std::vector<float> sum_in_order(std::size_t count, int ranks, unsigned seed) {
  std::vector<float> out(count, 0.0f);
  for (int r = 0; r < ranks; ++r) {
    const auto part = noise(count, seed + static_cast<unsigned>(r));
    for (std::size_t i = 0; i < count; ++i) out[i] += part[i];
  }
  return out;
}

}  // namespace

BOOST_AUTO_TEST_CASE(sums_are_those_in_the_order_of_ranks_bit_for_bit) {
  for (const int ranks : {1, 2, 3, 4})
    for (const std::size_t slot : {64u, 4096u, 1u << 20}) {
      const auto wrong = run_ranks(region(ranks, slot), [&](Communicator& group) -> std::string {
        for (const std::size_t count : {1u, 15u, 16u, 17u, 1023u, 1024u, 3072u, 5000u}) {
          const auto seed = static_cast<unsigned>(count) * 64;
          auto values = noise(count, seed + static_cast<unsigned>(group.rank()));
          const auto done = group.all_reduce(std::span(values), later());
          if (!done) return done.error().message;
          if (values != sum_in_order(count, ranks, seed)) return fmt::format("another sum of {}", count);
        }
        return {};
      });
      BOOST_TEST(wrong == "", ranks << " ranks, slots of " << slot << ": " << wrong);
    }
}

BOOST_AUTO_TEST_CASE(bfloat16_is_added_in_float_and_rounded_once_to_even) {
  const auto bits = [](float value) {
    std::uint32_t out;
    std::memcpy(&out, &value, 4);
    return out;
  };
  // 1 + 2^-8 lies between two neighbours, so does 1 + 3 * 2^-8; twice a half step is a step.
  const std::vector<std::vector<float>> parts{
      {1, 1, 256, 1e38f, INFINITY}, {0.00390625f, 0.01171875f, 0.5f, 3e38f, -INFINITY}, {0, 0, 0.5f, 0, 0}};
  const auto wrong = run_ranks(region(3, 64), [&](Communicator& group) -> std::string {
    std::vector<Bf16> values;
    for (const float x : parts[static_cast<std::size_t>(group.rank())])
      values.push_back({static_cast<std::uint16_t>(bits(x) >> 16)});
    if (const auto done = group.all_reduce(std::span(values), later()); !done) return done.error().message;
    if (values[0].bits != 0x3f80) return fmt::format("1 + 2^-8: {:04x}", values[0].bits);
    if (values[1].bits != 0x3f82) return fmt::format("1 + 3 * 2^-8: {:04x}", values[1].bits);
    if (values[2].bits != 0x4380) return fmt::format("256 + 1 lies between 256 and 258: {:04x}", values[2].bits);
    if (values[3].bits != 0x7f80) return fmt::format("too large: {:04x}", values[3].bits);
    if ((values[4].bits & 0x7fff) <= 0x7f80) return fmt::format("no NaN: {:04x}", values[4].bits);
    return {};
  });
  BOOST_TEST(wrong == "");
}

BOOST_AUTO_TEST_CASE(gather_and_broadcast_in_pieces_of_any_size) {
  for (const std::size_t slot : {64u, 192u, 4096u}) {
    const auto wrong = run_ranks(region(3, slot), [&](Communicator& group) -> std::string {
      for (const std::size_t count : {1u, 63u, 64u, 65u, 1000u})
        for (int root = 0; root < 3; ++root) {
          const auto fill = [&](int rank) {
            std::vector<std::byte> out(count);
            for (std::size_t i = 0; i < count; ++i)
              out[i] = static_cast<std::byte>(i * 7 + static_cast<std::size_t>(rank) * 31 + count);
            return out;
          };
          const auto own = fill(group.rank());
          std::vector<std::byte> all(3 * count);
          if (const auto done = group.all_gather(own, all, later()); !done) return done.error().message;
          std::vector<std::byte> expected;
          for (int r = 0; r < 3; ++r) expected.insert(expected.end(), count, std::byte{});
          for (int r = 0; r < 3; ++r)
            std::ranges::copy(fill(r), expected.begin() + static_cast<std::ptrdiff_t>(count) * r);
          if (all != expected) return fmt::format("gathered {} bytes otherwise", count);
          auto bytes = own;
          if (const auto done = group.broadcast(bytes, root, later()); !done) return done.error().message;
          if (bytes != fill(root)) return fmt::format("{} bytes of rank {} came otherwise", count, root);
        }
      return {};
    });
    BOOST_TEST(wrong == "", "slots of " << slot << ": " << wrong);
  }
}

BOOST_AUTO_TEST_CASE(thousands_of_calls_of_all_kinds_with_more_ranks_than_cores) {
  // A root does not wait for its readers: nothing may be overwritten that somebody still reads.
  for (const auto spin : {std::chrono::microseconds(0), std::chrono::microseconds(20)}) {
    const auto wrong = run_ranks(
        region(6, 64),
        [&](Communicator& group) -> std::string {
          std::mt19937 random(11);  // the same choices at all ranks
          for (int call = 0; call < 3000; ++call) {
            const int root = static_cast<int>(random() % 6);
            if (random() % 2 == 0) {
              std::vector<float> values(random() % 40 + 1, static_cast<float>(call + group.rank()));
              if (const auto done = group.all_reduce(std::span(values), later()); !done) return done.error().message;
              for (const float x : values)
                if (x != static_cast<float>(6 * call + 15)) return fmt::format("call {}: {}", call, x);
            } else {
              int number = group.rank() == root ? call : -1;
              if (const auto done = group.broadcast(std::as_writable_bytes(std::span(&number, 1)), root, later());
                  !done)
                return done.error().message;
              if (number != call) return fmt::format("call {}: {}", call, number);
            }
          }
          return {};
        },
        {.spin = spin, .beat = milliseconds(1000), .looks = 300});
    BOOST_TEST(wrong == "");
  }
}

BOOST_AUTO_TEST_CASE(numbers_of_calls_wrap_round) {
  const auto shared = region(2, 64);
  // As after four thousand million calls.
  for (int r = 0; r < 2; ++r) shared->words(r).posted.store(0xfffffff0u);
  std::vector<std::unique_ptr<ShmCommunicator>> group;
  for (int r = 0; r < 2; ++r) group.push_back(*ShmCommunicator::join(shared, r, kPatient));
  std::string wrong[2];
  {
    std::vector<std::jthread> threads;
    for (int r = 0; r < 2; ++r)
      threads.emplace_back([&, r] {
        for (int call = 0; call < 40 && wrong[r].empty(); ++call) {
          float value = static_cast<float>(call);
          const auto done = group[static_cast<std::size_t>(r)]->all_reduce(std::span(&value, 1), later());
          if (!done)
            wrong[r] = done.error().message;
          else if (value != static_cast<float>(2 * call))
            wrong[r] = fmt::format("call {}: {}", call, value);
        }
      });
  }
  BOOST_TEST(wrong[0] == "");
  BOOST_TEST(wrong[1] == "");
}

BOOST_AUTO_TEST_CASE(a_deadline_breaks_the_group_for_all) {
  const auto shared = region(2, 64);
  auto first = *ShmCommunicator::join(shared, 0, kPatient);
  auto second = *ShmCommunicator::join(shared, 1, kPatient);
  float value = 1;
  const auto late = first->all_reduce(std::span(&value, 1), SteadyClock().now() + milliseconds(20));
  BOOST_REQUIRE(!late);
  BOOST_TEST(static_cast<int>(late.error().code) == static_cast<int>(Errc::deadline_exceeded));
  BOOST_TEST(late.error().message == "rank 0 waited for call 1 of rank 1 until its deadline");
  const auto other = second->all_reduce(std::span(&value, 1), later());
  BOOST_REQUIRE(!other);
  BOOST_TEST(static_cast<int>(other.error().code) == static_cast<int>(Errc::unavailable));
  BOOST_TEST(other.error().message == "the group is broken: rank 0 waited for call 1 of rank 1 until its deadline");
  BOOST_TEST(value == 1);
}

BOOST_AUTO_TEST_CASE(an_abort_wakes_who_sleeps_and_the_first_reason_stays) {
  const auto shared = region(3, 64);
  std::vector<std::unique_ptr<ShmCommunicator>> group;
  for (int r = 0; r < 3; ++r) group.push_back(*ShmCommunicator::join(shared, r, kPatient));
  std::string told[2];
  {
    std::vector<std::jthread> threads;
    for (int r = 0; r < 2; ++r)
      threads.emplace_back([&, r] {
        float value = 1;
        const auto done = group[static_cast<std::size_t>(r)]->all_reduce(std::span(&value, 1), later());
        told[r] = done ? "no error" : done.error().message;
      });
    while (shared->words(2).sleepers.load() == 0 && shared->words(1).sleepers.load() == 0) std::this_thread::yield();
    group[2]->abort("the device is gone");
    group[2]->abort("something else");
  }
  for (const auto& text : told) BOOST_TEST(text == "the group is broken: the device is gone");
  BOOST_TEST(group[0]->broken() == "the device is gone");
  int number = 0;
  for (auto& rank : group) {
    BOOST_TEST(!rank->broadcast(std::as_writable_bytes(std::span(&number, 1)), 0, later()));
    std::vector<std::byte> own(1), all(3);
    BOOST_TEST(!rank->all_gather(own, all, later()));
  }
}

BOOST_AUTO_TEST_CASE(a_rank_that_leaves_is_missed_by_later_calls_only) {
  const auto shared = region(2, 64);
  auto stays = *ShmCommunicator::join(shared, 0, kPatient);
  auto leaves = *ShmCommunicator::join(shared, 1, kPatient);
  bool made = false;
  std::jthread other([&] {
    float mine = 3;
    made = leaves->all_reduce(std::span(&mine, 1), later()).has_value();
    leaves.reset();
  });
  float value = 2;
  BOOST_TEST(stays->all_reduce(std::span(&value, 1), later()).has_value());
  BOOST_TEST(value == 5);
  other.join();
  BOOST_TEST(made);
  BOOST_TEST(stays->all_reduce(std::span(&value, 1), later()).error().message ==
             "the group is broken: rank 1 has left");
}

BOOST_AUTO_TEST_CASE(calls_that_do_not_match_are_told_by_name) {
  const auto shared = region(2, 64);
  std::vector<std::unique_ptr<ShmCommunicator>> group;
  for (int r = 0; r < 2; ++r) group.push_back(*ShmCommunicator::join(shared, r, kPatient));
  std::string told[2];
  {
    std::vector<std::jthread> threads;
    threads.emplace_back([&] {
      float value = 1;
      const auto done = group[0]->all_reduce(std::span(&value, 1), later());
      told[0] = done ? "" : done.error().message;
    });
    threads.emplace_back([&] {
      std::vector<float> values(2);
      const auto done = group[1]->all_reduce(std::span(values), later());
      told[1] = done ? "" : done.error().message;
    });
  }
  for (const auto& text : told) {
    BOOST_TEST(text.find("call 1 is all_reduce (float) of ") != std::string::npos, text);
    BOOST_TEST(text.find("4 bytes") != std::string::npos, text);
    BOOST_TEST(text.find("8 bytes") != std::string::npos, text);
  }
}

BOOST_AUTO_TEST_CASE(two_roots_of_one_broadcast_are_found_out_by_the_next_call) {
  const auto shared = region(2, 64);
  std::vector<std::unique_ptr<ShmCommunicator>> group;
  for (int r = 0; r < 2; ++r) group.push_back(*ShmCommunicator::join(shared, r, kPatient));
  std::string told[2];
  {
    std::vector<std::jthread> threads;
    for (int r = 0; r < 2; ++r)
      threads.emplace_back([&, r] {
        auto& own = *group[static_cast<std::size_t>(r)];
        std::byte byte{};
        auto done = own.broadcast(std::span(&byte, 1), r, later());
        if (done) done = own.broadcast(std::span(&byte, 1), 0, later());
        told[r] = done ? "" : done.error().message;
      });
  }
  for (const auto& text : told) BOOST_TEST(text.find("root 1") != std::string::npos, text);
}

BOOST_AUTO_TEST_CASE(a_killed_or_stopped_process_breaks_the_group) {
  for (const int signal : {SIGKILL, SIGSTOP}) {
    const auto shared = region(2, 4096);
    int pipe[2];
    BOOST_REQUIRE(::pipe(pipe) == 0);
    const pid_t child = ::fork();
    BOOST_REQUIRE(child >= 0);
    if (child == 0) {
      // Joins through its own mapping of the descriptor, as a child of a leader does, and calls until it is stopped.
      const auto own = SharedRegion::attach(shared->descriptor());
      auto joined = own ? ShmCommunicator::join(*own, 1, kQuick) : fail(Errc::io, "no region");
      if (!joined) ::_exit(3);
      std::vector<float> values(1000, 1.0f);
      for (int call = 0;; ++call) {
        if (!(*joined)->all_reduce(std::span(values), later())) ::_exit(4);
        if (call == 20 && ::write(pipe[1], "x", 1) != 1) ::_exit(5);
      }
    }
    auto group = *ShmCommunicator::join(shared, 0, kQuick);
    std::atomic<bool> sent{false};
    std::jthread killer([&] {
      char byte;
      if (::read(pipe[0], &byte, 1) == 1) ::kill(child, signal);
      sent = true;
    });
    std::vector<float> values(1000, 1.0f);
    Result<void> done;
    while (done) done = group->all_reduce(std::span(values), later());
    BOOST_TEST(sent.load());
    BOOST_TEST(done.error().message == "the group is broken: rank 1 has given no sign of life for 100 ms");
    ::kill(child, SIGCONT);
    if (signal == SIGSTOP) {
      // It wakes up in a group that has gone on without it, and is told.
      int status = 0;
      BOOST_REQUIRE(::waitpid(child, &status, 0) == child);
      BOOST_TEST(WIFEXITED(status));
      BOOST_TEST(WEXITSTATUS(status) == 4);
    } else {
      ::waitpid(child, nullptr, 0);
    }
    ::close(pipe[0]);
    ::close(pipe[1]);
  }
}

BOOST_AUTO_TEST_CASE(a_silent_rank_is_one_whose_beat_stays_the_same) {
  BeatWatch watch(3, 0, 3);
  using Beats = std::vector<std::uint64_t>;
  for (int i = 0; i < 10; ++i)
    BOOST_TEST(!watch.look(Beats{7, 0, 0}));  // nobody else has joined; its own does not count
  BOOST_TEST(!watch.look(Beats{7, 1, 5}));
  BOOST_TEST(!watch.look(Beats{7, 1, 5}));
  BOOST_TEST(!watch.look(Beats{7, 1, 5}));
  BOOST_TEST(!watch.look(Beats{7, 2, 6}));
  BOOST_TEST(!watch.look(Beats{7, 3, 6}));
  BOOST_TEST(!watch.look(Beats{7, 4, 6}));
  BOOST_TEST(watch.look(Beats{7, 5, 6}).value() == 2);
}

BOOST_AUTO_TEST_CASE(regions_and_places_that_do_not_fit_are_refused) {
  BOOST_TEST(!SharedRegion::create(0, 64));
  BOOST_TEST(!SharedRegion::create(SharedRegion::kRanksMax + 1, 64));
  BOOST_TEST(!SharedRegion::create(2, 0));
  BOOST_TEST(!SharedRegion::attach(-1));
  TemporaryDirectory folder;
  const auto path = folder.path() / "ranks";
  const auto made = SharedRegion::create_file(path, 2, 100);
  BOOST_REQUIRE(made);
  BOOST_TEST((*made)->slot_bytes() == 128);
  BOOST_TEST(!SharedRegion::create_file(path, 2, 100));
  const auto found = SharedRegion::attach_file(path);
  BOOST_REQUIRE(found);
  auto rank = ShmCommunicator::join(*found, 1, kPatient);
  BOOST_REQUIRE(rank);
  BOOST_TEST(ShmCommunicator::join(*made, 1, kPatient).error().message ==
             "rank 1 has joined before: a group is built anew, never rejoined");
  BOOST_TEST(ShmCommunicator::join(*made, 2, kPatient).error().message == "rank 2, expected 0 to 1");
  float value = 0;
  std::vector<std::byte> own(3), all(5);
  BOOST_TEST((*rank)->all_gather(own, all, later()).error().message == "all_gather: room for 5 bytes, expected 2 x 3");
  BOOST_TEST((*rank)->broadcast(std::as_writable_bytes(std::span(&value, 1)), 2, later()).error().message ==
             "broadcast: root 2, expected 0 to 1");
  BOOST_TEST((*rank)->broken() == "");

  // Files that are none, or whose sizes lie.
  const auto write = [&](const std::function<void(RegionHeader&)>& change, std::size_t bytes) {
    std::vector<std::byte> file(bytes);
    RegionHeader header;
    header.ranks = 2;
    header.slot_bytes = 128;
    change(header);
    std::memcpy(file.data(), static_cast<const void*>(&header), std::min(bytes, sizeof header));
    const auto name = folder.path() / "other";
    const int descriptor = ::open(name.c_str(), O_CREAT | O_TRUNC | O_WRONLY, 0600);
    BOOST_REQUIRE(::write(descriptor, file.data(), bytes) == static_cast<ssize_t>(bytes));
    ::close(descriptor);
    return SharedRegion::attach_file(name).has_value();
  };
  const auto whole = static_cast<std::size_t>(std::filesystem::file_size(path));
  const auto nothing = [](RegionHeader&) {};
  BOOST_TEST(write(nothing, whole));
  BOOST_TEST(!write(nothing, whole - 1));
  BOOST_TEST(!write(nothing, 10));
  BOOST_TEST(!write([](RegionHeader& h) { h.magic = 1; }, whole));
  BOOST_TEST(!write([](RegionHeader& h) { h.ranks = 0; }, whole));
  BOOST_TEST(!write([](RegionHeader& h) { h.slot_bytes = ~0ull - 63; }, whole));
}

BOOST_AUTO_TEST_CASE(a_group_of_one_exchanges_nothing) {
  LocalCommunicator group;
  std::vector<float> values{1, 2};
  BOOST_TEST(group.all_reduce(std::span(values), later()).has_value());
  BOOST_TEST(values == (std::vector<float>{1, 2}), boost::test_tools::per_element());
  std::vector<std::byte> own{std::byte{5}}, all(1), two(2);
  BOOST_TEST(group.all_gather(own, all, later()).has_value());
  BOOST_TEST((all == own));
  BOOST_TEST(!group.all_gather(own, two, later()));
  BOOST_TEST(!group.broadcast(own, 1, later()));
  group.abort("enough");
  group.abort("more");
  BOOST_TEST(group.all_reduce(std::span(values), later()).error().message == "the group is broken: enough");
  BOOST_TEST(!group.broadcast(own, 0, later()));
}

}  // namespace parlando::parallel
