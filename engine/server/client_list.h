// ClientList: who is connected, for `ps`. Thread-safe: workers enter and leave, the main loop
// reads.
#pragma once

#include <chrono>
#include <list>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace snap::server {

struct ClientInfo {
  std::string name;         ///< "client with pid 7", or its address
  std::string export_name;  ///< empty: it is in the handshake
  bool tls = false;
  std::chrono::steady_clock::time_point since = std::chrono::steady_clock::now();
};

class ClientList {
 public:
  /// A client's place in the list, from its first byte to its last.
  class Place {
   public:
    Place(ClientList& list, std::string name) : list_(list) {
      ClientInfo info;
      info.name = std::move(name);
      std::lock_guard guard(list_.lock_);
      list_.clients_.push_front(std::move(info));
      at_ = list_.clients_.begin();
    }
    ~Place() {
      std::lock_guard guard(list_.lock_);
      list_.clients_.erase(at_);
    }
    Place(const Place&) = delete;
    Place& operator=(const Place&) = delete;
    void has_entered(const std::string& export_name, bool tls) {
      std::lock_guard guard(list_.lock_);
      at_->export_name = export_name;
      at_->tls = tls;
    }

   private:
    ClientList& list_;
    std::list<ClientInfo>::iterator at_;
  };

  /// Newest first.
  std::vector<ClientInfo> all() const {
    std::lock_guard guard(lock_);
    return {clients_.begin(), clients_.end()};
  }

 private:
  mutable std::mutex lock_;
  std::list<ClientInfo> clients_;
};

}  // namespace snap::server
