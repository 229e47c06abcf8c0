// The control socket, both ways: a client's bytes against the server, and a server's bytes against
// the client, with the codecs of all operations (engine/server/control_protocol.h, remote.h).
//
// Input: a byte of flags and the bytes of the other side.
#include "engine/attach/attachment.h"
#include "engine/server/control.h"
#include "engine/server/control_client.h"
#include "engine/server/log.h"
#include "engine/server/remote_codec.h"
#include "fuzz.h"
#include "json_mutator.h"
#include "scripted_loop.h"

// What the engine would log is of no interest here.
namespace snap::server {
void log_info(std::string_view) {}
void log_warning(std::string_view) {}
void log_error(std::string_view) {}
}  // namespace snap::server

namespace snap::fuzz {

namespace {

using namespace server;

enum Flag : unsigned {
  kFromServer = 1,  ///< the bytes are a server's, for the client
  kFewReceived = 2,
  kFewSent = 4,
  kHangsUp = 8,
};
constexpr unsigned kOpShift = 4;  ///< with kFromServer: which operation is called

// ---- The server's side. Operations decode their arguments as volume_ops.cpp does and answer what
// they understood.

Task<Result<std::string>> do_volume(std::string json) {
  auto args = decode_volume_args(json);
  if (!args) co_return args.error();
  auto again = decode_volume_args(encode_volume_args(*args));
  if (!again || again->size != args->size) broken("arguments are the same on the other side");
  VolumeRecord record;
  record.name = args->volume;
  record.id = args->name;
  record.size = args->size;
  co_return encode_record(record);
}

Task<Result<std::string>> do_attach(std::string json) {
  auto wish = decode_device_wish(json);
  if (!wish) co_return wish.error();
  auto again = decode_device_wish(encode_device_wish(*wish));
  if (!again || again->device != wish->device || again->timeout != wish->timeout)
    broken("a wish that was read can be sent on");
  attach::Attachment made;
  made.device = "/dev/nbd0";
  made.name = "v" + wish->name;
  const std::string text = attach::encode_attachment(made);
  if (!attach::decode_attachment(text)) broken("what attach answers can be read");
  co_return text;
}

Task<Result<std::string>> do_commit(std::string json, Progress progress) {
  auto args = decode_commit_args(json);
  if (!args) co_return args.error();
  progress.tell(args->volume, 1, 2);
  co_await yield_now();
  progress.tell(args->options.comment, args->options.rate_limit, 2);
  auto again = decode_commit_args(encode_commit_args(args->volume, args->options));
  if (!again) broken("arguments of commit can be read again: " + again.error().message());
  if (again->options.name != args->options.name ||
      again->options.labels.size() > args->options.labels.size())
    broken("arguments of commit are the same on the other side");
  if (progress.is_cancelled()) co_return Error(ErrorCode::kCancelled, args->volume);
  Store::Committed committed;
  committed.image.author = args->options.author;
  if (args->options.name) committed.image.tags.push_back(*args->options.name);
  std::string text = encode_committed(committed);
  if (!decode_committed(text)) broken("what commit answers can be read");
  co_return text;
}

Task<Result<std::string>> do_stat() {
  ServerStat stat;
  stat.connections = 1;
  ServedStat volume;
  volume.name = "vm1";
  volume.size = 4096;
  volume.stats.kinds[0].latency.counts[7] = 3;
  stat.volumes.push_back(volume);
  co_return encode_stat(stat, true);
}

Task<Result<std::string>> do_fail(std::string json) {
  co_return Error(ErrorCode::kBusy, json, 16);
}

Task<void> stop_at_end(ControlServer* server, ScriptedLoop* loop) {
  while (!loop->ended() && !loop->hung_up()) {
    Sleep pause(std::chrono::seconds(1));  // of the script's time
    co_await pause;
  }
  server->stop();
}

/// Every line that a server sends is one that a client understands.
void check_lines(std::string_view sent) {
  bool first = true;
  while (!sent.empty()) {
    const std::size_t end = sent.find('\n');
    if (end == std::string_view::npos) broken("the last line is whole");
    const std::string_view line = sent.substr(0, end);
    if (first ? !decode_hello(line) : !decode_reply(line)) broken("a line that was sent is read");
    first = false;
    sent.remove_prefix(end + 1);
  }
}

void serve(const Script& script) {
  ScriptedLoop loop(script);
  ControlServer control{Listener()};
  control.add("volume", [](std::string args, Progress) { return do_volume(std::move(args)); });
  control.add("commit", [](std::string args, Progress progress) {
    return do_commit(std::move(args), std::move(progress));
  });
  control.add("attach", [](std::string args, Progress) { return do_attach(std::move(args)); });
  control.add("stat", [](std::string, Progress) { return do_stat(); });
  control.add("fail", [](std::string args, Progress) { return do_fail(std::move(args)); });
  loop.spawn(stop_at_end(&control, &loop));
  loop.run(control.run());
  if (!loop.hung_up()) check_lines(text_of(loop.sent()));
}

// ---- The client's side

Task<void> ask(unsigned op) {
  static const char* const kOps[] = {"commit", "snapshot", "clone", "stat", "stop"};
  auto client = co_await ControlClient::connect("script");
  if (!client) co_return;
  // More than one call, so that what is left in the buffer is used.
  for (int i = 0; i < 3; ++i) {
    std::string name = kOps[(op + static_cast<unsigned>(i)) % std::size(kOps)];
    std::string args = "{}";
    Progress progress;
    progress.report = [](std::string_view, std::uint64_t, std::uint64_t) {};
    auto result = co_await (*client)->call(std::move(name), std::move(args), progress);
    if (!result) continue;
    (void)decode_committed(*result);
    (void)decode_pause(*result);
    (void)decode_record(*result);
    (void)decode_stat(*result);
    (void)attach::decode_attachment(*result);
  }
}

}  // namespace

void run(std::span<const std::byte> input) {
  const unsigned flags = take_byte(input);
  Script script{input};
  if ((flags & kFewReceived) != 0) script.most_received = 5;
  if ((flags & kFewSent) != 0) script.most_sent = 3;
  if ((flags & kHangsUp) != 0) script.hangs_up_after = 100;
  if ((flags & kFromServer) == 0) {
    serve(script);
  } else {
    ScriptedLoop loop(script);
    loop.run(ask(flags >> kOpShift));
  }
}

namespace {

Seed seed(std::string name, unsigned flags, std::string_view text) {
  Bytes bytes{static_cast<std::byte>(flags)};
  const Bytes rest = bytes_of_text(text);
  bytes.insert(bytes.end(), rest.begin(), rest.end());
  return {std::move(name), std::move(bytes)};
}

}  // namespace

std::vector<Seed> seeds() {
  Store::CommitOptions options;
  options.name = Reference::parse("base:2").value();
  options.comment = "add nginx";
  options.author = "me";
  options.labels["team"] = "storage";
  const std::string requests =
      encode_request({"stat", "{}"}) +
      encode_request({"volume", encode_volume_args({"vm1", "before", 4096})}) +
      encode_request({"commit", encode_commit_args("vm1", options)}) +
      encode_request({"fail", "{\"why\":[1,2,{}]}"}) + encode_request({"unknown", "{}"});
  Store::Committed committed;
  committed.image.tags.push_back(*options.name);
  ServerStat stat;
  ServedStat volume;
  volume.name = "vm1";
  volume.size = 4096;
  volume.stats.kinds[0].latency.counts[7] = 3;
  stat.volumes.push_back(volume);
  VolumeRecord record;
  record.name = "vm2";
  record.size = 4096;
  const std::string hello = encode_hello(4711);
  const std::string replies =
      hello + encode_progress({"pack", 1, 2}) + encode_result(encode_committed(committed)) +
      encode_result(encode_stat(stat, true)) + encode_error(Error(ErrorCode::kBusy, "in use", 16));
  return {seed("requests", 0, requests),
          seed("requests_slow", kFewReceived | kFewSent, requests),
          seed("hangs_up", kHangsUp, requests),
          seed("replies", kFromServer, replies),
          seed("replies_slow", kFromServer | kFewReceived, replies),
          seed("record", kFromServer, hello + encode_result(encode_record(record))),
          seed("pause", kFromServer, hello + encode_result(encode_pause({})))};
}

}  // namespace snap::fuzz

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size,
                                               std::size_t room, unsigned seed) {
  return snap::fuzz::mutate_json_or_bytes(data, size, room, '\n', seed);
}
