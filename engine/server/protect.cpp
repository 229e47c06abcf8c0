#include "engine/server/protect.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <string_view>

#include "engine/io/unique_fd.h"

namespace snap::server {

void become_io_flusher() noexcept {
  (void)::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0);
}

void spare_from_oom_killer() noexcept {
  const UniqueFd fd(::open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC));
  constexpr std::string_view kNever = "-1000";
  if (fd) (void)!::write(fd.get(), kNever.data(), kNever.size());
}

}  // namespace snap::server
