#include "engine/attach/nbd_netlink.h"

#include <linux/nbd-netlink.h>
#include <netlink/genl/ctrl.h>
#include <netlink/genl/genl.h>
#include <netlink/netlink.h>

#include <cerrno>
#include <utility>

#include "engine/attach/attachment.h"

namespace snap::attach {

namespace {

Error out_of_memory() {
  return Error(ErrorCode::kOutOfMemory, "no memory for a netlink message");
}

/// What the kernel has answered. Its errno is kept as it is, which libnl's own codes do not.
struct Received {
  int err = 0;
  bool done = false;
  std::optional<unsigned> index;
  std::optional<bool> connected;
};

/// The first device of a list: one alone was asked for.
std::optional<bool> first_connected(nlattr* list) {
  auto* item = static_cast<nlattr*>(nla_data(list));
  nlattr* fields[NBD_DEVICE_ATTR_MAX + 1];
  if (!nla_ok(item, nla_len(list)) ||
      nla_parse_nested(fields, NBD_DEVICE_ATTR_MAX, item, nullptr) != 0 ||
      fields[NBD_DEVICE_CONNECTED] == nullptr)
    return std::nullopt;
  return nla_get_u8(fields[NBD_DEVICE_CONNECTED]) != 0;
}

int on_valid(nl_msg* message, void* to) {
  auto* header = static_cast<genlmsghdr*>(nlmsg_data(nlmsg_hdr(message)));
  nlattr* attributes[NBD_ATTR_MAX + 1];
  const int parsed = nla_parse(attributes, NBD_ATTR_MAX, genlmsg_attrdata(header, 0),
                               genlmsg_attrlen(header, 0), nullptr);
  if (parsed != 0) return NL_OK;
  auto* received = static_cast<Received*>(to);
  if (attributes[NBD_ATTR_INDEX] != nullptr)
    received->index = nla_get_u32(attributes[NBD_ATTR_INDEX]);
  if (attributes[NBD_ATTR_DEVICE_LIST] != nullptr)
    received->connected = first_connected(attributes[NBD_ATTR_DEVICE_LIST]);
  return NL_OK;
}

int on_ack(nl_msg*, void* to) {
  static_cast<Received*>(to)->done = true;
  return NL_STOP;
}

int on_error(sockaddr_nl*, nlmsgerr* error, void* to) {
  auto* answer = static_cast<Received*>(to);
  answer->err = -error->error;
  answer->done = true;
  return NL_STOP;
}

std::string device_name(unsigned index) {
  return "/dev/nbd" + std::to_string(index);
}

bool put_sockets(nl_msg* message, std::span<const int> sockets) {
  nlattr* list = nla_nest_start(message, NBD_ATTR_SOCKETS);
  if (list == nullptr) return false;
  for (const int fd : sockets) {
    nlattr* item = nla_nest_start(message, NBD_SOCK_ITEM);
    if (item == nullptr || nla_put_u32(message, NBD_SOCK_FD, static_cast<std::uint32_t>(fd)) != 0)
      return false;
    nla_nest_end(message, item);
  }
  nla_nest_end(message, list);
  return true;
}

std::uint64_t seconds_of(std::chrono::seconds time) {
  return static_cast<std::uint64_t>(time.count());
}

}  // namespace

struct NbdNetlink::Message {
  struct Free {
    void operator()(nl_msg* message) const noexcept { nlmsg_free(message); }
  };
  std::unique_ptr<nl_msg, Free> holder;
  nl_msg* get() const noexcept { return holder.get(); }
};

struct NbdNetlink::Answer : Received {};

void NbdNetlink::Close::operator()(nl_sock* socket) const noexcept {
  nl_socket_free(socket);
}

Result<NbdNetlink> NbdNetlink::open(const char* family_name) {
  Socket socket(nl_socket_alloc());
  if (!socket) return out_of_memory();
  const int connected = genl_connect(socket.get());
  if (connected < 0)
    return Error(ErrorCode::kUnsupported,
                 std::string("connect to generic netlink: ") + nl_geterror(connected));
  const int family = genl_ctrl_resolve(socket.get(), family_name);
  if (family < 0)
    return Error(ErrorCode::kUnsupported,
                 "this kernel has no nbd devices, or its module is not loaded: run 'modprobe nbd'");
  return NbdNetlink(std::move(socket), family);
}

Result<NbdNetlink::Message> NbdNetlink::begin(int command, std::optional<unsigned> index) const {
  Message message{std::unique_ptr<nl_msg, Message::Free>(nlmsg_alloc())};
  if (!message.get()) return out_of_memory();
  if (genlmsg_put(message.get(), NL_AUTO_PORT, NL_AUTO_SEQ, family_, 0, 0,
                  static_cast<std::uint8_t>(command), NBD_GENL_VERSION) == nullptr)
    return out_of_memory();
  if (index && nla_put_u32(message.get(), NBD_ATTR_INDEX, *index) != 0) return out_of_memory();
  return message;
}

Result<NbdNetlink::Answer> NbdNetlink::exchange(Message message, const std::string& what) {
  Answer answer;
  Received* received = &answer;
  const std::unique_ptr<nl_cb, void (*)(nl_cb*)> callbacks(nl_cb_alloc(NL_CB_DEFAULT), &nl_cb_put);
  if (!callbacks) return out_of_memory();
  nl_cb_set(callbacks.get(), NL_CB_VALID, NL_CB_CUSTOM, &on_valid, received);
  nl_cb_set(callbacks.get(), NL_CB_ACK, NL_CB_CUSTOM, &on_ack, received);
  nl_cb_err(callbacks.get(), NL_CB_CUSTOM, &on_error, received);
  int status = nl_send_auto(socket_.get(), message.get());
  while (status >= 0 && !answer.done)
    status = nl_recvmsgs(socket_.get(), callbacks.get());
  if (!answer.done) return Error(ErrorCode::kIo, what + ": netlink: " + nl_geterror(status));
  switch (answer.err) {
    case 0:
      return answer;
    case EPERM:
      return Error(ErrorCode::kPermission, what + ": only root (CAP_SYS_ADMIN) may", EPERM);
    case EBUSY:
      return Error(ErrorCode::kBusy,
                   what + ": another server has the device, or something has it open", EBUSY);
    case EOPNOTSUPP:
      return Error(ErrorCode::kUnsupported, what + ": this kernel's nbd cannot do that",
                   EOPNOTSUPP);
    default:
      return Error::from_errno(answer.err, what);
  }
}

namespace {
/// Success, without what came with it.
template <class T>
Result<void> nothing(const Result<T>& result) {
  if (!result) return result.error();
  return {};
}
}  // namespace

Result<unsigned> NbdNetlink::connect(const Device& device, std::span<const int> sockets) {
  auto message = begin(NBD_CMD_CONNECT, device.index);
  if (!message) return message.error();
  nl_msg* m = message->get();
  const bool fits =
      nla_put_u64(m, NBD_ATTR_SIZE_BYTES, device.size) == 0 &&
      nla_put_u64(m, NBD_ATTR_BLOCK_SIZE_BYTES, device.block_size) == 0 &&
      nla_put_u64(m, NBD_ATTR_SERVER_FLAGS, device.flags) == 0 &&
      nla_put_u64(m, NBD_ATTR_TIMEOUT, seconds_of(device.timeout)) == 0 &&
      nla_put_u64(m, NBD_ATTR_DEAD_CONN_TIMEOUT, seconds_of(device.dead_timeout)) == 0 &&
      nla_put_string(m, NBD_ATTR_BACKEND_IDENTIFIER, device.backend.c_str()) == 0 &&
      put_sockets(m, sockets);
  if (!fits) return out_of_memory();
  const std::string what =
      device.index ? "connect " + device_name(*device.index) : "connect an nbd device";
  auto done = exchange(std::move(*message), what);
  if (!done) return done.error();
  if (!done->index)
    return Error(ErrorCode::kIo, what + ": the kernel did not say which device it is");
  if (nbd_backend(*done->index) != device.backend) {
    (void)disconnect(*done->index);
    return Error(ErrorCode::kUnsupported,
                 what +
                     ": this kernel does not keep the name of a device's server, which tells ours "
                     "from others (Linux 5.14 does); use --via fuse");
  }
  return *done->index;
}

Result<void> NbdNetlink::reconnect(unsigned index, const std::string& backend,
                                   std::span<const int> sockets) {
  auto message = begin(NBD_CMD_RECONFIGURE, index);
  if (!message) return message.error();
  if (nla_put_string(message->get(), NBD_ATTR_BACKEND_IDENTIFIER, backend.c_str()) != 0 ||
      !put_sockets(message->get(), sockets))
    return out_of_memory();
  return nothing(exchange(std::move(*message), "give " + device_name(index) + " new connections"));
}

Result<void> NbdNetlink::resize(unsigned index, const std::string& backend, std::uint64_t size) {
  auto message = begin(NBD_CMD_RECONFIGURE, index);
  if (!message) return message.error();
  if (nla_put_string(message->get(), NBD_ATTR_BACKEND_IDENTIFIER, backend.c_str()) != 0 ||
      nla_put_u64(message->get(), NBD_ATTR_SIZE_BYTES, size) != 0)
    return out_of_memory();
  return nothing(exchange(std::move(*message), "tell " + device_name(index) + " its new size"));
}

Result<void> NbdNetlink::disconnect(unsigned index) {
  auto message = begin(NBD_CMD_DISCONNECT, index);
  if (!message) return message.error();
  auto done = exchange(std::move(*message), "disconnect " + device_name(index));
  // The kernel knows no such device, or has nothing connected to it.
  if (!done && done.error().sys_errno() == EINVAL) return {};
  return nothing(done);
}

Result<bool> NbdNetlink::connected(unsigned index) {
  auto message = begin(NBD_CMD_STATUS, index);
  if (!message) return message.error();
  auto done = exchange(std::move(*message), "ask for " + device_name(index));
  if (!done) return done.error();
  return done->connected.value_or(false);
}

}  // namespace snap::attach
