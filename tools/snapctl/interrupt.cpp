// See interrupt.h.
#include "tools/snapctl/interrupt.h"

#include <signal.h>
#include <unistd.h>

#include <atomic>

#include "tools/snapctl/exit_code.h"

namespace snap::cli {

namespace {

std::atomic<bool> g_interrupted{false};  // written by the handler, so it cannot be a member
std::atomic<bool> g_only_hangups{true};  // of those that have arrived
std::atomic<bool> g_held{false};
constexpr unsigned kPatienceSeconds = 10;

void on_interrupt(int signal_number) {
  if (signal_number != SIGHUP) g_only_hangups = false;
  if (g_interrupted.exchange(true) && !g_held) _exit(kExitCancelled);
  alarm(kPatienceSeconds);
}

void on_alarm(int) {
  if (g_held) {
    alarm(1);
    return;
  }
  _exit(kExitCancelled);
}

}  // namespace

void catch_interrupts() {
  struct sigaction action {};
  sigemptyset(&action.sa_mask);
  action.sa_handler = on_interrupt;
  for (int signal_number : {SIGINT, SIGTERM, SIGHUP}) {
    struct sigaction before {};
    sigaction(signal_number, nullptr, &before);
    // nohup, or a shell that started us in the background, wants it ignored.
    if (before.sa_handler != SIG_IGN) sigaction(signal_number, &action, nullptr);
  }
  action.sa_handler = on_alarm;
  sigaction(SIGALRM, &action, nullptr);
  action.sa_handler = SIG_IGN;
  sigaction(SIGPIPE, &action, nullptr);
}

void hold_interrupts(bool hold) noexcept {
  g_held = hold;
}

bool interrupted() noexcept {
  return g_interrupted.load();
}

void forget_hangups() noexcept {
  if (!g_only_hangups || !g_interrupted.exchange(false)) return;
  alarm(0);
}

}  // namespace snap::cli
