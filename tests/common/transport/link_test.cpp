#define BOOST_TEST_MODULE link
#include "common/transport/link.hpp"

#include <boost/test/unit_test.hpp>

namespace parlando::transport {
namespace {
using namespace protocol;

const Time kStart{std::chrono::hours(1)};

Envelope head_of(std::uint32_t stream, std::uint64_t session = 1) {
  Envelope e;
  e.session = {session, session};
  e.stream = {stream};
  return e;
}
Message text(std::uint32_t stream, std::string words) { return pack(Say{std::move(words)}, head_of(stream)); }
Message sound(std::uint32_t stream, std::int64_t first = 0, std::size_t bytes = 640) {
  return pack(Audio{first, Bytes(bytes, std::byte{1})}, head_of(stream));
}
Message closing(std::uint32_t stream) { return pack(Close{}, head_of(stream)); }
std::string words_of(Message message) {
  if (message.head.type == MessageType::error) return "error " + read<ErrorMessage>(message)->code;
  if (message.head.type == MessageType::close) return "close";
  auto say = read<Say>(message);
  return say ? say->text : say.error().message;
}

Decoded over_the_wire(const Frames& f, Time now = kStart) {
  const auto body = std::as_bytes(std::span(f.body));
  const std::span<const std::byte> frames[] = {f.envelope, body, f.payload};
  auto d = decode(frames, now);
  BOOST_REQUIRE_MESSAGE(d.has_value(), (d ? std::string() : d.error().message));
  return *std::move(d);
}

LinkLimits window_of(std::uint32_t messages) {
  LinkLimits limits;
  limits.window_messages = messages;
  return limits;
}

/// Two ends and the frames between them.
struct Pair {
  Link caller, callee;
  explicit Pair(LinkLimits a = {}, LinkLimits b = {})
      : caller(true, a, b.window_messages), callee(false, b, a.window_messages) {}

  static Link::Arrival move(Link& from, Link& to) {
    Link::Arrival all;
    while (auto frames = from.next(kStart, 1)) {
      auto got = to.receive(over_the_wire(*frames));
      std::move(got.messages.begin(), got.messages.end(), std::back_inserter(all.messages));
      all.gap |= got.gap;
      all.violation |= got.violation;
    }
    return all;
  }
  static bool tell(Link& from, Link& to) {
    auto frames = from.window(1);
    if (!frames) return false;
    to.on_window(over_the_wire(*frames).messages.front());
    return true;
  }
  Link::Arrival out() { return move(caller, callee); }
  Link::Arrival back() { return move(callee, caller); }
  void windows() {
    tell(caller, callee);
    tell(callee, caller);
  }
  /// Everything arrives and is handled, until nothing moves.
  std::vector<std::string> settle() {
    std::vector<std::string> heard;
    for (bool moved = true; moved;) {
      moved = false;
      for (auto* to : {&callee, &caller}) {
        auto got = move(to == &callee ? caller : callee, *to);
        for (auto& m : got.messages) {
          const auto head = m.head;
          heard.push_back(words_of(std::move(m)));
          to->handled(head);
        }
        moved |= !got.messages.empty();
      }
      moved |= tell(caller, callee);
      moved |= tell(callee, caller);
    }
    return heard;
  }
  void nothing_is_left() {
    BOOST_TEST(caller.streams() == 0u);
    BOOST_TEST(callee.streams() == 0u);
    BOOST_TEST(caller.kept_bytes() == 0u);
    BOOST_TEST(callee.kept_bytes() == 0u);
    BOOST_TEST(!caller.has_output());
    BOOST_TEST(!callee.has_output());
  }
};

void refused(Link& link, Message message, Errc code) {
  const auto r = link.send(std::move(message));
  BOOST_REQUIRE(!r.has_value());
  BOOST_TEST(to_string(r.error().code) == to_string(code), r.error().message);
}
void sent(Link& link, Message message) {
  const auto r = link.send(std::move(message));
  BOOST_REQUIRE_MESSAGE(r.has_value(), (r ? std::string() : r.error().message));
}

}  // namespace

BOOST_AUTO_TEST_CASE(messages_arrive_once_and_in_order_whatever_is_repeated) {
  Pair p;
  for (int i = 0; i < 5; ++i) sent(p.caller, text(1, std::to_string(i)));
  auto frames = p.caller.next(kStart, 1);
  BOOST_REQUIRE(frames);
  auto first = p.callee.receive(over_the_wire(*frames));
  auto again = p.callee.receive(over_the_wire(*frames));
  BOOST_REQUIRE(first.messages.size() == 5u);
  for (int i = 0; i < 5; ++i) BOOST_TEST(words_of(first.messages[static_cast<std::size_t>(i)]) == std::to_string(i));
  BOOST_TEST(again.messages.empty());
  BOOST_TEST(!again.gap);
  BOOST_TEST(p.callee.counters().duplicates == 5u);
}

BOOST_AUTO_TEST_CASE(what_was_lost_is_asked_for_and_sent_again_after_a_resume) {
  Pair p;
  sent(p.caller, text(1, "lost"));
  BOOST_REQUIRE(p.caller.next(kStart, 1));
  sent(p.caller, text(1, "second"));
  auto late = p.out();
  BOOST_TEST(late.gap);
  BOOST_TEST(late.messages.empty());
  BOOST_TEST(p.callee.received() == 0u);
  BOOST_REQUIRE(p.caller.resume(p.callee.received()));
  auto all = p.out();
  BOOST_REQUIRE(all.messages.size() == 2u);
  BOOST_TEST(words_of(all.messages[0]) == "lost");
  BOOST_TEST(p.caller.counters().resent == 2u);
  BOOST_TEST(p.caller.counters().sent == 2u);
}

BOOST_AUTO_TEST_CASE(a_contradiction_about_what_was_received_is_seen) {
  Pair p;
  sent(p.caller, text(1, "a"));
  BOOST_TEST(!p.caller.resume(1));  // it has not left yet
  p.out();
  BOOST_TEST(!p.caller.resume(2));
  BOOST_TEST(!p.caller.resume(~0ull));
  BOOST_TEST(p.caller.resume(1));
  p.settle();
  BOOST_TEST(!p.caller.resume(0));  // the peer had told more before
}

BOOST_AUTO_TEST_CASE(a_sender_is_at_most_a_window_ahead_of_what_was_handled) {
  Pair p(window_of(64), window_of(4));
  for (int i = 0; i < 10; ++i) sent(p.caller, text(1, std::to_string(i)));
  auto first = p.out();
  BOOST_REQUIRE(first.messages.size() == 4u);
  p.windows();  // received, not handled: what was kept for replay is freed, no credit is given
  BOOST_TEST(p.out().messages.empty());
  BOOST_TEST(p.caller.kept_bytes() == 6 * text(1, "0").bytes());
  p.callee.handled(first.messages[0].head);
  BOOST_TEST(!p.callee.window_urgent());
  p.callee.handled(first.messages[1].head);
  BOOST_TEST(p.callee.window_urgent());  // half the credit is used
  p.windows();
  BOOST_TEST(!p.callee.window_urgent());
  auto more = p.out();
  BOOST_REQUIRE(more.messages.size() == 2u);
  BOOST_TEST(words_of(more.messages[0]) == "4");
  for (const auto i : {2u, 3u}) p.callee.handled(first.messages[i].head);
  for (const auto& m : more.messages) p.callee.handled(m.head);
  BOOST_TEST(p.settle().size() == 4u);
}

BOOST_AUTO_TEST_CASE(what_is_handled_twice_counts_once) {
  Pair p(window_of(64), window_of(2));
  for (int i = 0; i < 6; ++i) sent(p.caller, text(1, std::to_string(i)));
  const auto got = p.out();
  for (int i = 0; i < 5; ++i) p.callee.handled(got.messages[0].head);
  p.windows();
  BOOST_TEST(p.out().messages.size() == 2u);
}

BOOST_AUTO_TEST_CASE(streams_have_their_own_credit) {
  Pair p(window_of(64), window_of(2));
  for (int i = 0; i < 5; ++i) sent(p.caller, text(1, "a"));
  sent(p.caller, text(2, "b"));
  const auto got = p.out();
  BOOST_REQUIRE(got.messages.size() == 3u);
  BOOST_TEST(words_of(got.messages[2]) == "b");
}

BOOST_AUTO_TEST_CASE(a_caller_that_ignores_the_window_is_told_and_its_stream_is_dropped) {
  Link violator(true, {}, 100);  // believes in 100
  Link callee(false, window_of(4), 64);
  for (int i = 0; i < 9; ++i) sent(violator, text(1, std::to_string(i)));
  sent(violator, text(2, "other"));
  auto got = Pair::move(violator, callee);
  BOOST_REQUIRE(got.messages.size() == 5u);
  BOOST_TEST(words_of(got.messages[4]) == "other");
  BOOST_TEST(callee.counters().credit_exceeded == 1u);
  auto told = Pair::move(callee, violator);
  BOOST_REQUIRE(told.messages.size() == 1u);
  BOOST_TEST(words_of(told.messages[0]) == "error credit_exceeded");
  // The service has heard of the stream, so it hears of its end.
  sent(violator, closing(1));
  got = Pair::move(violator, callee);
  BOOST_REQUIRE(got.messages.size() == 1u);
  BOOST_TEST(words_of(got.messages[0]) == "close");
  callee.handled(got.messages[0].head);
  Pair::move(callee, violator);
  BOOST_TEST(callee.streams() == 1u);
  BOOST_TEST(violator.streams() == 1u);
}

BOOST_AUTO_TEST_CASE(a_callee_that_ignores_the_window_is_reported_to_the_caller_s_own_service) {
  Link caller(true, window_of(2), 64);
  Link violator(false, {}, 100);
  sent(caller, text(1, "ask"));
  for (auto& m : Pair::move(caller, violator).messages) violator.handled(m.head);
  for (int i = 0; i < 5; ++i) sent(violator, text(1, std::to_string(i)));
  auto got = Pair::move(violator, caller);
  BOOST_REQUIRE(got.messages.size() == 3u);
  BOOST_TEST(words_of(got.messages[2]) == "error credit_exceeded");
}

BOOST_AUTO_TEST_CASE(a_refusal_needs_no_credit) {
  Link violator(true, window_of(2), 100);
  Link callee(false, window_of(2), 2);
  sent(violator, text(1, "ask"));
  for (auto& m : Pair::move(violator, callee).messages) callee.handled(m.head);
  for (int i = 0; i < 2; ++i) sent(callee, text(1, "answer"));  // all the credit there is
  for (int i = 0; i < 5; ++i) sent(violator, text(1, "x"));
  Pair::move(violator, callee);
  auto got = Pair::move(callee, violator);
  BOOST_REQUIRE(got.messages.size() == 3u);
  BOOST_TEST(words_of(got.messages[2]) == "error credit_exceeded");
}

BOOST_AUTO_TEST_CASE(ten_thousand_streams_leave_nothing_behind) {
  Pair p;
  for (std::uint32_t stream = 1; stream <= 10000; ++stream) {
    sent(p.caller, text(stream, "ask"));
    for (auto& m : p.out().messages) {
      sent(p.callee, pack(Text{.text = "answer"}, m.head));
      p.callee.handled(m.head);
    }
    for (auto& m : p.back().messages) p.caller.handled(m.head);
    sent(p.caller, closing(stream));
    for (auto& m : p.out().messages) p.callee.handled(m.head);
    p.back();
    if (stream % 100 == 0) p.windows();
  }
  p.settle();
  p.nothing_is_left();
  BOOST_TEST(p.caller.received() == 20000u);
}

BOOST_AUTO_TEST_CASE(answers_on_a_stream_that_has_ended_are_refused_or_late) {
  Pair p;
  sent(p.caller, text(1, "ask"));
  auto asked = p.out();
  p.callee.handled(asked.messages[0].head);
  sent(p.caller, closing(1));
  refused(p.caller, text(1, "more"), Errc::cancelled);
  refused(p.caller, closing(1), Errc::cancelled);
  sent(p.callee, text(1, "answer"));  // crosses the Close
  BOOST_TEST(p.back().messages.empty());
  BOOST_TEST(p.caller.counters().late == 1u);
  auto ended = p.out();
  BOOST_REQUIRE(ended.messages.size() == 1u);
  p.callee.handled(ended.messages[0].head);
  refused(p.callee, text(1, "too late"), Errc::cancelled);
  p.callee.handled(asked.messages[0].head);  // nothing to count any more
  p.settle();
  p.nothing_is_left();
}

BOOST_AUTO_TEST_CASE(what_waits_for_credit_goes_with_its_stream) {
  Pair p(window_of(64), window_of(2));
  for (int i = 0; i < 50; ++i) sent(p.caller, text(1, "x"));
  sent(p.caller, closing(1));
  BOOST_TEST(p.settle().size() == 3u);
  p.nothing_is_left();
}

BOOST_AUTO_TEST_CASE(what_a_callee_cannot_send_yet_goes_with_its_stream) {
  Pair p(window_of(2), window_of(64));
  sent(p.caller, text(1, "ask"));
  for (auto& m : p.out().messages) p.callee.handled(m.head);
  for (int i = 0; i < 50; ++i) sent(p.callee, text(1, "x"));
  p.back();
  sent(p.caller, closing(1));
  for (auto& m : p.out().messages) p.callee.handled(m.head);
  p.settle();
  p.nothing_is_left();
}

BOOST_AUTO_TEST_CASE(nothing_leaves_that_cannot_arrive) {
  Pair p;
  auto deep = text(1, "");
  deep.body = "{\"a\":" + std::string(40, '[') + std::string(40, ']') + "}";
  refused(p.caller, deep, Errc::bad_json);
  auto bad = text(1, "");
  bad.body = "{\"text\":\"\xff\"}";
  refused(p.caller, bad, Errc::bad_json);
  refused(p.caller, text(1, std::string(140000, 'x')), Errc::bad_frame);
  refused(p.caller, sound(1, 0, 32 * 1024 + 2), Errc::bad_frame);
  bad = text(1, "");
  bad.payload.resize(1);
  refused(p.caller, bad, Errc::bad_frame);
  bad.head.type = static_cast<MessageType>(127);
  refused(p.caller, bad, Errc::unknown_type);
  for (const auto type :
       {MessageType::hello, MessageType::heartbeat, MessageType::window, MessageType::batch, MessageType::resync}) {
    Message word;
    word.head = head_of(1);
    word.head.type = type;
    refused(p.caller, word, Errc::invalid_argument);
  }
  BOOST_TEST(p.caller.counters().refused == 11u);
  p.nothing_is_left();
}

BOOST_AUTO_TEST_CASE(only_callers_begin_and_end_streams) {
  Pair p;
  refused(p.callee, text(1, "x"), Errc::cancelled);
  sent(p.caller, text(1, "ask"));
  p.out();
  refused(p.callee, closing(1), Errc::invalid_argument);
  refused(p.caller, closing(7), Errc::cancelled);
}

BOOST_AUTO_TEST_CASE(limits_refuse_and_keep_nothing_of_what_they_refuse) {
  LinkLimits limits;
  limits.streams_max = 2;
  limits.link_bytes_max = 4000;
  limits.stream_bytes_max = 1000;
  Pair p(limits, window_of(1));
  sent(p.caller, text(1, "a"));
  sent(p.caller, text(2, "a"));
  refused(p.caller, text(3, "a"), Errc::overloaded);
  BOOST_TEST(p.caller.streams() == 2u);
  sent(p.caller, sound(1, 0, 800));
  refused(p.caller, sound(1, 0, 800), Errc::overloaded);  // of the stream
  sent(p.caller, closing(2));
  p.settle();
  BOOST_TEST(p.caller.streams() == 1u);
  refused(p.caller, sound(2, 0, 4000), Errc::overloaded);  // of the link
  BOOST_TEST(p.caller.streams() == 1u);                    // a stream that could not begin is none
  sent(p.caller, closing(1));                              // an end always finds room
  p.settle();
  p.nothing_is_left();
}

BOOST_AUTO_TEST_CASE(a_full_callee_refuses_streams_and_resets_one_that_goes_on) {
  LinkLimits few;
  few.streams_max = 2;
  Pair p({}, few);
  for (std::uint32_t s = 1; s <= 3; ++s) sent(p.caller, text(s, "ask"));
  auto got = p.out();
  BOOST_TEST(got.messages.size() == 2u);
  auto told = p.back();
  BOOST_REQUIRE(told.messages.size() == 1u);
  BOOST_TEST(words_of(told.messages[0]) == "error overloaded");
  BOOST_TEST(told.messages[0].head.stream.value == 3u);
  p.caller.handled(told.messages[0].head);
  sent(p.caller, closing(3));
  BOOST_TEST(p.out().messages.empty());  // the service never heard of it
  p.settle();
  BOOST_TEST(p.caller.streams() == 2u);
  BOOST_TEST(p.callee.streams() == 2u);
  for (std::uint32_t s = 4; s <= 6; ++s) sent(p.caller, text(s, "ask"));
  BOOST_TEST(p.out().violation);
}

BOOST_AUTO_TEST_CASE(one_that_never_says_what_it_received_costs_bounded_memory) {
  LinkLimits small;
  small.link_bytes_max = 100000;
  Link callee(false, small, 256);
  Link caller(true, {}, 256);
  bool violation = false;
  for (std::uint32_t s = 1; s < 10000 && !violation; ++s) {
    sent(caller, text(s, "ask"));
    sent(caller, closing(s));
    auto got = Pair::move(caller, callee);
    for (auto& m : got.messages) callee.handled(m.head);
    violation = got.violation;
    while (callee.next(kStart, 1)) {
    }
    Pair::tell(callee, caller);
  }
  BOOST_TEST(violation);
  BOOST_TEST(callee.kept_bytes() < 210000u);
}

BOOST_AUTO_TEST_CASE(many_messages_travel_as_one_batch_and_large_ones_alone) {
  Pair p;
  for (int i = 0; i < 200; ++i) sent(p.caller, sound(static_cast<std::uint32_t>(1 + i % 10)));
  int frames = 0;
  std::size_t messages = 0;
  while (auto f = p.caller.next(kStart, 1)) {
    ++frames;
    const auto d = over_the_wire(*f);
    BOOST_TEST(d.batch == (d.messages.size() > 1));
    messages += p.callee.receive(d).messages.size();
  }
  BOOST_TEST(messages == 200u);
  BOOST_TEST(frames == 1);
  for (int i = 0; i < 3; ++i) sent(p.caller, pack(Tokens{0, 0, false, Bytes(200 * 1024)}, head_of(20)));
  frames = 0;
  while (auto f = p.caller.next(kStart, 1)) ++frames;
  BOOST_TEST(frames == 3);
}

BOOST_AUTO_TEST_CASE(sound_may_wait_for_company_and_nothing_else) {
  Pair p;
  BOOST_TEST(p.caller.output_may_wait());
  sent(p.caller, sound(1));
  BOOST_TEST(p.caller.output_may_wait());
  sent(p.caller, text(1, "x"));
  BOOST_TEST(!p.caller.output_may_wait());
  BOOST_REQUIRE(p.caller.next(kStart, 1));
  BOOST_TEST(p.caller.output_may_wait());
  p.caller.put_back();
  BOOST_TEST(!p.caller.output_may_wait());
  p.out();
  sent(p.caller, sound(1));
  BOOST_TEST(p.caller.output_may_wait());
  BOOST_REQUIRE(p.caller.resume(0));
  BOOST_TEST(!p.caller.output_may_wait());
  p.settle();
  BOOST_TEST(p.caller.output_may_wait());
}

BOOST_AUTO_TEST_CASE(what_could_not_leave_comes_again_and_was_never_sent) {
  Pair p;
  sent(p.caller, text(1, "a"));
  sent(p.caller, text(1, "b"));
  BOOST_REQUIRE(p.caller.next(kStart, 1));
  p.caller.put_back();
  BOOST_TEST(p.caller.sent() == 0u);
  BOOST_TEST(p.caller.output_messages() == 2u);
  BOOST_TEST(!p.caller.resume(2));
  BOOST_TEST(p.out().messages.size() == 2u);
  BOOST_TEST(p.caller.sent() == 2u);
  BOOST_TEST(p.caller.counters().sent == 2u);
  BOOST_TEST(p.caller.counters().resent == 0u);
}

BOOST_AUTO_TEST_CASE(windows_that_were_lost_with_a_connection_are_told_again) {
  Pair p(window_of(64), window_of(4));
  for (int i = 0; i < 8; ++i) sent(p.caller, text(1, std::to_string(i)));
  for (auto& m : p.out().messages) p.callee.handled(m.head);
  BOOST_REQUIRE(p.callee.window(1));  // lost
  BOOST_TEST(!p.callee.window_due());
  BOOST_REQUIRE(p.caller.resume(p.callee.received()));
  BOOST_REQUIRE(p.callee.resume(p.caller.received()));
  BOOST_TEST(p.callee.window_due());
  BOOST_TEST(p.settle().size() == 4u);
}

BOOST_AUTO_TEST_CASE(deadlines_shrink_on_their_way_and_while_they_wait) {
  Pair p;
  auto m = text(1, "x");
  m.deadline = kStart + milliseconds(500);
  sent(p.caller, m);
  sent(p.caller, text(1, "no deadline"));
  auto frames = p.caller.next(kStart + milliseconds(200), 1);
  auto d = over_the_wire(*frames, kStart + milliseconds(1000));
  BOOST_TEST((d.messages[0].deadline == kStart + milliseconds(1300)));
  BOOST_TEST((d.messages[1].deadline == Time::max()));
  BOOST_REQUIRE(p.caller.resume(0));
  frames = p.caller.next(kStart + milliseconds(9000), 1);
  d = over_the_wire(*frames, kStart);
  BOOST_TEST((d.messages[0].deadline == kStart + milliseconds(1)));  // spent, and known to be
}

BOOST_AUTO_TEST_CASE(a_message_of_a_later_version_keeps_its_place_and_its_credit) {
  Pair p(window_of(64), window_of(2));
  sent(p.caller, text(1, "a"));
  sent(p.caller, text(1, "later"));
  sent(p.caller, text(1, "b"));
  Decoded d = over_the_wire(*p.caller.next(kStart, 1));
  d.messages[1].unknown = true;
  auto got = p.callee.receive(d);
  BOOST_REQUIRE(got.messages.size() == 1u);
  p.callee.handled(got.messages[0].head);
  BOOST_TEST(p.callee.received() == 2u);
  BOOST_TEST(p.callee.counters().unknown_types == 1u);
  const auto rest = p.settle();
  BOOST_REQUIRE(rest.size() == 1u);
  BOOST_TEST(rest[0] == "b");
}

BOOST_AUTO_TEST_CASE(a_stream_of_unknown_messages_alone_ends_without_a_word_to_the_service) {
  Pair p;
  sent(p.caller, text(1, "later"));
  Decoded d = over_the_wire(*p.caller.next(kStart, 1));
  d.messages[0].unknown = true;
  BOOST_TEST(p.callee.receive(d).messages.empty());
  sent(p.caller, closing(1));
  BOOST_TEST(p.settle().empty());
  p.nothing_is_left();
}

BOOST_AUTO_TEST_CASE(a_fenced_stream_ends_at_both_though_its_caller_goes_on) {
  Pair p;
  sent(p.caller, text(1, "mine"));
  sent(p.caller, text(2, "mine, too"));
  for (auto& m : p.out().messages) p.callee.handled(m.head);
  sent(p.caller, text(1, "under way"));
  const auto keys = p.callee.fence({1, 1}, "gone to another");
  BOOST_REQUIRE(keys.size() == 2u);
  BOOST_TEST(p.callee.fence({1, 1}, "once more").empty());
  BOOST_TEST(p.out().messages.empty());
  for (const auto& key : keys) {
    auto end = closing(key.stream.value).head;
    p.callee.handled(end);
  }
  BOOST_TEST(p.callee.streams() == 2u);  // until the caller's word is in
  refused(p.callee, text(1, "late"), Errc::cancelled);
  sent(p.caller, text(2, "under way, too"));
  auto told = p.back();
  BOOST_REQUIRE(told.messages.size() == 2u);
  BOOST_TEST(words_of(told.messages[0]) == "error stale_epoch");
  BOOST_TEST(p.caller.streams() == 0u);
  refused(p.caller, closing(1), Errc::cancelled);
  BOOST_TEST(p.settle().empty());
  p.nothing_is_left();
}

BOOST_AUTO_TEST_CASE(a_close_that_crosses_a_fence_reaches_the_service_once) {
  Pair p;
  sent(p.caller, text(1, "mine"));
  for (auto& m : p.out().messages) p.callee.handled(m.head);
  sent(p.caller, closing(1));
  const auto keys = p.callee.fence({1, 1}, "gone");
  BOOST_REQUIRE(keys.size() == 1u);
  BOOST_TEST(p.out().messages.empty());
  p.callee.handled(closing(1).head);
  p.settle();
  p.nothing_is_left();
}

BOOST_AUTO_TEST_CASE(a_close_that_nobody_sent_ends_nothing) {
  Pair p;
  sent(p.caller, text(1, "x"));
  p.out();
  p.callee.handled(closing(1).head);
  BOOST_TEST(p.callee.streams() == 1u);
  BOOST_TEST(!p.callee.has_output());
}

BOOST_AUTO_TEST_CASE(hostile_numbers_do_no_harm) {
  Pair p;
  sent(p.caller, text(1, "x"));
  Decoded d = over_the_wire(*p.caller.next(kStart, 1));
  d.messages[0].head.sequence = ~0ull;
  BOOST_TEST(p.callee.receive(d).gap);
  d.messages[0].head.sequence = 0;
  BOOST_TEST(p.callee.receive(d).messages.empty());
  auto lie = pack(Window{~0ull});
  lie.payload.resize(Window::kRecordBytes * 3 + 5, std::byte{0xff});
  p.caller.on_window(lie);
  BOOST_TEST(p.caller.kept_bytes() == 0u);
  BOOST_TEST(p.caller.sent() == 1u);
  lie.body = "abc";
  p.caller.on_window(lie);
  BOOST_TEST(!p.caller.resume(~0ull));
  // A limit beyond all reason is taken as far as it is reasonable.
  auto generous = pack(Window{0});
  generous.payload.resize(Window::kRecordBytes, std::byte{0xff});
  p.caller.on_window(generous);
  sent(p.caller, text(1, "y"));
  d = over_the_wire(*p.caller.next(kStart, 1));
  d.messages.front().head.sequence = 1;
  BOOST_TEST(p.callee.receive(d).messages.size() == 1u);
}

}  // namespace parlando::transport
