// The options of a server's command that concern TLS: what it proves itself with, and whether
// clients must use it.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "engine/nbd/tls_credentials.h"
#include "snap/result.h"
#include "snap/task.h"

namespace snap::cli {

struct TlsOptions {
  std::string certificates;  ///< a directory
  std::string psk;           ///< a file
  std::string mode;          ///< off, allowed or required; empty: as the others say
  std::string verify_peer = "on";
};

/// Adds them to a command. `options` outlives the parsing.
void add_tls_options(CLI::App& command, TlsOptions& options);

/// Reads the credentials that `options` name; what is odd about them goes to the log.
/// InvalidArgument for options that contradict each other.
Task<Result<nbd::TlsPolicy>> load_tls(TlsOptions options);

}  // namespace snap::cli
