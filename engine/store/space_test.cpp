// Settings and events of a store: the files, and many writers of them.
#include <catch2/catch.hpp>
#include <thread>

#include "engine/store/event_log.h"
#include "engine/store/settings.h"
#include "engine/store/store_test_support.h"

using namespace snap;

namespace {

StoredSettings sample_settings() {
  StoredSettings settings;
  settings.limits.limit = 100u << 20;
  settings.limits.low_water = 10u << 20;
  return settings;
}

StoreEvent sample_event(std::uint64_t number) {
  StoreEvent event;
  event.time = "2026-11-24T07:01:01Z";
  event.kind = "low-water";
  event.volume = "web";
  event.message = "a \"message\"\n with \xff in it";
  event.numbers["left"] = number;
  return event;
}

Task<EventReader::Batch> read_all(std::string store) {
  EventReader reader(std::move(store));
  auto batch = co_await reader.next();
  co_return must(std::move(batch));
}

void append(const std::string& path, const std::string& text) {
  std::ofstream out(path, std::ios::binary | std::ios::app);
  out << text;
}

}  // namespace

TEST_CASE("settings.json: no flipped bit and no cut changes what is set") {
  const std::string good = encode_settings(sample_settings());
  const StoredSettings back = decode_settings(good).value();
  CHECK(back.limits.limit == 100u << 20);
  CHECK(back.limits.low_water == 10u << 20);
  for (std::size_t i = 0; i < good.size(); ++i) {
    CHECK_FALSE((i + 1 < good.size() && decode_settings(good.substr(0, i))));
    for (int bit = 0; bit < 8; ++bit) {
      std::string bad = good;
      bad[i] = static_cast<char>(bad[i] ^ 1 << bit);
      auto decoded = decode_settings(bad);
      INFO(bad);
      if (decoded) REQUIRE(encode_settings(*decoded) == good);
    }
  }
  const StoredSettings none = decode_settings(encode_settings(StoredSettings())).value();
  CHECK_FALSE(none.limits.limit);
  CHECK_FALSE(none.limits.low_water);
}

TEST_CASE(
    "settings.json with values that no store may have is damage, whatever its checksum says") {
  StoredSettings settings = sample_settings();
  SECTION("no bytes") {
    settings.limits.limit = 0;
  }
  SECTION("a low-water mark of no bytes") {
    settings.limits.low_water = 0;
  }
  SECTION("too many bytes") {
    settings.limits.limit = (std::uint64_t{1} << 60) + 1;
  }
  SECTION("a mark that is always crossed") {
    settings.limits.low_water = settings.limits.limit;
  }
  CHECK_FALSE(check_limits(settings.limits));
  const auto decoded = decode_settings(encode_settings(settings));
  REQUIRE_FALSE(decoded);
  CHECK(decoded.error().code() == ErrorCode::kCorrupt);
}

TEST_CASE("settings of a later release are refused, or only read") {
  StoredSettings settings = sample_settings();
  settings.features.ro_compat = 2;
  CHECK(decode_settings(encode_settings(settings)).value().read_only);
  settings.features.incompat = 2;
  const auto refused = decode_settings(encode_settings(settings));
  REQUIRE_FALSE(refused);
  CHECK(refused.error().code() == ErrorCode::kUnsupported);
}

TEST_CASE("the files of docs/format.md, settings.json and events, are read") {
  const auto settings = decode_settings(R"({
 "checksum": "7dd297fc57a20607",
 "format": {"compat": 0, "incompat": 0, "needs": "0.1.0", "ro_compat": 0, "version": 1},
 "limit": 107374182400,
 "low_water": 10737418240
})");
  REQUIRE(settings);
  CHECK(settings->limits.low_water == std::uint64_t{10} << 30);
  const auto event = decode_event(
      R"({"time":"2026-11-24T07:01:01Z","event":"volume-no-space","volume":"web",)"
      R"("allocated":1048576,"limit":1048576,"message":"volume web got no new block"})");
  REQUIRE(event);
  CHECK(event->numbers.at("limit") == 1048576);
}

TEST_CASE("an event is one line that reads back, and what is none is passed over") {
  const StoreEvent event = sample_event(7);
  const std::string line = encode_event(event);
  CHECK(line.find('\n') == std::string::npos);
  const auto back = decode_event(line);
  REQUIRE(back);
  CHECK(back->kind == "low-water");
  CHECK(back->volume == "web");
  CHECK(back->numbers == event.numbers);
  StoreEvent long_one = event;
  long_one.message = std::string(100000, 'x');
  CHECK(decode_event(encode_event(long_one)));
  for (const char* bad :
       {"", "x", "[]", "{}", "null", R"({"time":"2026-11-24T07:01:01Z"})", R"({"event":"x"})",
        R"({"time":"now","event":"x"})", R"({"time":"2026-11-24T07:01:01Z","event":7})",
        R"({"time":"2026-11-24T07:01:01Z","event":"x","volume":[]})", "\xff{}"}) {
    INFO(bad);
    CHECK_FALSE(decode_event(bad));
  }
  CHECK_FALSE(decode_event(line.substr(0, line.size() - 1)));
  CHECK_FALSE(decode_event(std::string(5000, ' ') + line));
  CHECK_FALSE(decode_event(std::string(4000, '[')));
}

namespace {

constexpr std::uint64_t kEvents = 4000;

Task<void> add_many(EventLog* log, std::uint64_t first) {
  for (std::uint64_t i = 0; i < kEvents; ++i) {
    StoreEvent event = sample_event(first + i);
    event.message = std::string(300, 'm');
    auto added = co_await log->add(std::move(event));
    must(added);
  }
}

Task<void> cross_often(EventLog* log, std::uint64_t* news) {
  for (int i = 0; i < 50; ++i) {
    auto on = co_await log->change(EventLog::Mark::kLimit, true, sample_event(1));
    *news += must(on);
    co_await yield_now();
  }
}

}  // namespace

TEST_CASE("events of several writers at once are whole, and two files of 1 MiB are kept at most") {
  StoreRig rig;
  const std::string store = rig.path;
  const auto writer = [&store](std::uint64_t first) {
    auto loop = must(make_event_loop());
    auto root = must(loop->run(open_directory(store)));
    EventLog log(*root);
    loop->run(add_many(&log, first));
  };
  std::thread one(writer, 0), other(writer, 1000000);
  one.join();
  other.join();
  const auto batch = rig.run(read_all(store));
  CHECK(batch.passed_over == 0);
  // What is left is in order for each writer, none missing between, and ends with the last of all.
  std::uint64_t last[2] = {0, 0};
  std::size_t count[2] = {0, 0};
  for (const StoreEvent& event : batch.events) {
    const std::uint64_t number = event.numbers.at("left");
    const std::size_t who = number >= 1000000;
    REQUIRE((count[who] == 0 || number == last[who] + 1));
    last[who] = number;
    ++count[who];
  }
  CHECK((last[0] == kEvents - 1 || last[1] == 1000000 + kEvents - 1));
  CHECK(batch.events.size() > EventLog::kMaxFile / 512);
  for (const char* name : {"log", "log.1"})
    CHECK(std::filesystem::file_size(store + "/events/" + name) <= EventLog::kMaxFile);
  std::size_t files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(store + "/events")) {
    static_cast<void>(entry);
    ++files;
  }
  CHECK(files == 3);  // and the lock
}

TEST_CASE("a mark is told once, whoever notes it, and again only after it did not hold") {
  StoreRig rig;
  EventLog log(*rig.store->impl().root);
  const auto change = [&](bool holds) {
    return must(rig.run(log.change(EventLog::Mark::kLowWater, holds, sample_event(2))));
  };
  CHECK_FALSE(change(false));
  CHECK_FALSE(std::filesystem::exists(rig.path + "/events"));  // nothing to tell, nothing made
  std::uint64_t news[2] = {0, 0};
  const auto crosser = [&rig](std::uint64_t* counter) {
    auto loop = must(make_event_loop());
    auto root = must(loop->run(open_directory(rig.path)));
    EventLog mine(*root);
    loop->run(cross_often(&mine, counter));
  };
  std::thread one(crosser, &news[0]), other(crosser, &news[1]);
  one.join();
  other.join();
  CHECK(news[0] + news[1] == 1);
  CHECK(change(true));  // the other mark
  CHECK_FALSE(change(true));
  CHECK(change(false));
  CHECK(change(true));
  CHECK(rig.run(read_all(rig.path)).events.size() == 4);
  // A state that is damaged says that nothing holds: told twice rather than never.
  std::ofstream(rig.path + "/events/state", std::ios::binary) << "\x01\x02";
  CHECK(change(true));
}

TEST_CASE("a line that was cut short spoils no other, and long ones take no memory") {
  StoreRig rig;
  must(rig.run(rig.store->add_event(sample_event(1))));
  const std::string path = rig.path + "/events/log";
  append(path, encode_event(sample_event(2)).substr(0, 20));
  must(rig.run(rig.store->add_event(sample_event(3))));
  append(path, std::string(3u << 20, 'x') + "\n\n");
  auto batch = rig.run(read_all(rig.path));
  CHECK(batch.events.size() == 2);
  CHECK(batch.passed_over == 2);
  must(rig.run(rig.store->add_event(sample_event(4))));  // to a new file: this one is too long
  batch = rig.run(read_all(rig.path));
  CHECK(batch.events.size() == 3);
}
