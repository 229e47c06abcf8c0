// What a server tells of itself and of what it serves: the numbers behind `stat`, `ps` and the
// metrics, and their JSON on the control socket (engine/server/remote.h lists the operation).
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "snap/result.h"
#include "snap/volume.h"

namespace snap::server {

/// One export. Its counts are those of this process, also from before it was closed and opened
/// again.
struct ServedStat {
  std::string name;             ///< of the export
  std::string kind = "volume";  ///< or "image", "snapshot"
  std::uint64_t size = 0;       ///< bytes
  bool read_only = false;
  bool open = true;               ///< false: closed again, for nobody used it
  std::uint64_t connections = 0;  ///< clients that have it
  std::uint64_t dirty = 0;        ///< bytes at most that a flush would make durable
  std::uint64_t allocated = 0;    ///< bytes of data in the writable layer
  Volume::Stats stats;
};

/// A client that is connected.
struct ClientStat {
  std::string name;         ///< "client with pid 7", or its address
  std::string export_name;  ///< empty: it is in the handshake
  bool tls = false;
  std::chrono::seconds connected{0};
};

struct ServerStat {
  std::string command;  ///< "export" or "serve"
  std::string store;    ///< path
  std::chrono::seconds uptime{0};
  std::vector<std::string> addresses;  ///< on which it listens: "/path" or "host:port"
  std::uint64_t connections = 0;       ///< now
  std::uint64_t accepted = 0, turned_away = 0, ended_badly = 0;  ///< connections since the start
  std::vector<ServedStat> volumes;
  std::vector<ClientStat> clients;  ///< of all exports, newest first
};

/// The word for a kind of request in JSON, metrics and tables: "read", "write", ...
std::string_view kind_name(Volume::RequestKind kind) noexcept;

/// {"command","store","uptime","addresses":[],"connections","accepted","turned_away",
/// "ended_badly","volumes":[{"name","kind","size","read_only","open","connections","dirty",
/// "allocated","in_flight","requests":{KIND:{"errors","bytes","total_ns","latency":[[BUCKET,N]]}}}]}
/// "clients":[{"name","export","tls","connected"}] stands beside "volumes".
/// Without `counts` the requests are left out.
std::string encode_stat(const ServerStat& stat, bool counts);
Result<ServerStat> decode_stat(std::string_view json);

}  // namespace snap::server
