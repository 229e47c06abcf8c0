#include "engine/server/control_protocol.h"

#include <array>
#include <nlohmann/json.hpp>
#include <span>
#include <string>

#include "engine/base/json_value.h"
#include "engine/io/socket.h"
#include "snap/limits.h"

namespace snap::server {

namespace {

using nlohmann::json;

// What is nested deeper is no message of ours; printing it again would recurse as deep.
constexpr int kMaxDepth = 16;

Result<json> parse_object(std::string_view line) {
  bool too_deep = false;
  const auto watch = [&too_deep](int depth, json::parse_event_t, json&) {
    too_deep = too_deep || depth > kMaxDepth;
    return !too_deep;
  };
  json value = json::parse(line, watch, false);
  if (too_deep || value.is_discarded() || !value.is_object())
    return Error(ErrorCode::kProtocol, "a control message is not a JSON object");
  return value;
}

std::string line_of(const json& value) {
  return json_text(value) + '\n';
}

ErrorCode code_named(std::string_view name) {
  for (int i = 0; i <= static_cast<int>(ErrorCode::kProtocol); ++i) {
    if (error_code_name(static_cast<ErrorCode>(i)) == name) return static_cast<ErrorCode>(i);
  }
  return ErrorCode::kIo;
}

}  // namespace

std::string encode_hello(int pid) {
  return line_of({{"snapctl", kControlVersion}, {"protocol", kControlProtocol}, {"pid", pid}});
}

std::string encode_request(const ControlRequest& request) {
  json args = json::parse(request.args, nullptr, false);
  if (!args.is_object()) args = json::object();
  return line_of({{"protocol", kControlProtocol}, {"op", request.op}, {"args", std::move(args)}});
}

std::string encode_progress(const ControlProgress& p) {
  return line_of({{"progress", {{"stage", p.stage}, {"done", p.done}, {"total", p.total}}}});
}

std::string encode_result(std::string_view text) {
  json value = json::parse(text, nullptr, false);
  return line_of({{"result", value.is_discarded() ? json::object() : std::move(value)}});
}

std::string encode_error(const Error& error) {
  return line_of({{"error",
                   {{"code", error_code_name(error.code())},
                    {"errno", error.sys_errno()},
                    {"message", error.message()}}}});
}

Result<ControlHello> decode_hello(std::string_view line) {
  auto value = parse_object(line);
  if (!value) return value.error();
  ControlHello hello;
  hello.version = json_field(*value, "snapctl", std::string());
  hello.protocol = json_field(*value, "protocol", 0);
  hello.pid = json_field(*value, "pid", 0);
  if (hello.version.empty() || hello.protocol == 0)
    return Error(ErrorCode::kProtocol, "the other side of the control socket is not snapctl");
  return hello;
}

Result<ControlRequest> decode_request_line(std::string_view line) {
  auto value = parse_object(line);
  if (!value) return value.error();
  // First of all: what else there is depends on it.
  const int protocol = json_field(*value, "protocol", 0);
  if (protocol == 0) return Error(ErrorCode::kProtocol, "a control request has no \"protocol\"");
  if (protocol != kControlProtocol) {
    return Error(ErrorCode::kUnsupported,
                 "the command speaks control protocol " + std::to_string(protocol) +
                     ", the server is snapctl " + std::string(kControlVersion) + " with protocol " +
                     std::to_string(kControlProtocol) +
                     ": restart the server, or use its own program");
  }
  ControlRequest request;
  request.op = json_field(*value, "op", std::string());
  if (request.op.empty()) return Error(ErrorCode::kProtocol, "a control request has no \"op\"");
  const auto args = value->find("args");
  if (args != value->end() && !args->is_object())
    return Error(ErrorCode::kProtocol, "the \"args\" of a control request are no object");
  request.args = args == value->end() ? "{}" : json_text(*args);
  return request;
}

Result<ControlReply> decode_reply(std::string_view line) {
  auto value = parse_object(line);
  if (!value) return value.error();
  if (const auto p = value->find("progress"); p != value->end() && p->is_object()) {
    return ControlReply(ControlProgress{json_field(*p, "stage", std::string()),
                                        json_field(*p, "done", std::uint64_t{0}),
                                        json_field(*p, "total", std::uint64_t{0})});
  }
  if (const auto e = value->find("error"); e != value->end() && e->is_object()) {
    return ControlReply(Error(code_named(json_field(*e, "code", std::string())),
                              json_field(*e, "message", std::string("the server gave no reason")),
                              json_field(*e, "errno", 0)));
  }
  if (const auto r = value->find("result"); r != value->end()) {
    return ControlReply(ControlResult{json_text(*r)});
  }
  return Error(ErrorCode::kProtocol, "a control reply is neither progress nor result nor error");
}

Task<Result<std::string>> LineReader::next() {
  std::size_t searched = 0;
  for (;;) {
    const std::size_t end = buffer_.find('\n', searched);
    if (end != std::string::npos) {
      std::string line = buffer_.substr(0, end);
      buffer_.erase(0, end + 1);
      co_return line;
    }
    searched = buffer_.size();
    if (searched >= kMaxControlMessage)
      co_return Error(ErrorCode::kTooLarge, "a control message is longer than 1 MiB");
    std::array<std::byte, 4096> piece;
    auto got = co_await recv_some(socket_, piece);
    if (!got) co_return got.error();
    if (*got == 0)
      co_return Error(ErrorCode::kCancelled, "the other side of the control socket hung up");
    buffer_.append(reinterpret_cast<const char*>(piece.data()), *got);
  }
}

}  // namespace snap::server
