#include "memory/peer_process.h"

#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <string>
#include <thread>

#include "base/env.h"
#include "base/log.h"
#include "memory/attach.h"
#include "memory/unix_socket.h"

namespace zbccl::memory {
namespace {

constexpr auto kLook = Milliseconds(20);  // between looks at whether a wait is still wanted

constexpr auto kLongestPause = std::chrono::microseconds(5000);  // between two times of asking

Status check_wait(Deadline deadline, const PeerProcess::Cancelled& cancelled) {
  if (cancelled && cancelled()) return error(Code::kAborted, "the wait for a segment was ended");
  if (deadline.passed()) return error(Code::kTimeout, "a local process did not answer");
  return {};
}

// Mutual proof; the service speaks first of what it knows, so that nothing is sent to an impostor
// on the same name.
Result<ExchangeWelcome> prove(int connection, const bootstrap::Secret& secret, Deadline deadline) {
  ExchangeHello hello;
  ZBCCL_ASSIGN_OR_RETURN(hello.nonce, bootstrap::make_nonce());
  ZBCCL_RETURN_IF_ERROR(send_message(connection, as_message(hello)));
  ExchangeChallenge challenge;
  ZBCCL_RETURN_IF_ERROR(receive_message(connection, as_buffer(challenge), nullptr, deadline));
  if (challenge.magic != kExchangeMagic) {
    return error(Code::kNetwork, "a local process does not speak zbccl's protocol");
  }
  if (challenge.version != kExchangeVersion) {
    return error(Code::kVersionMismatch,
                 "a local process speaks memory exchange version {}, this one {}",
                 challenge.version, kExchangeVersion);
  }
  ZBCCL_ASSIGN_OR_RETURN(
      const bootstrap::Proof expected,
      bootstrap::make_proof(secret, bootstrap::Role::kServer, hello.nonce, challenge.nonce));
  if (!bootstrap::proofs_equal(expected, challenge.proof)) {
    return error(Code::kNetwork, "a local process does not know the secret it should");
  }
  ExchangeProof proof;
  ZBCCL_ASSIGN_OR_RETURN(proof.proof, bootstrap::make_proof(secret, bootstrap::Role::kClient,
                                                            hello.nonce, challenge.nonce));
  ZBCCL_RETURN_IF_ERROR(send_message(connection, as_message(proof)));
  ExchangeWelcome welcome;
  ZBCCL_RETURN_IF_ERROR(receive_message(connection, as_buffer(welcome), nullptr, deadline));
  return welcome;
}

}  // namespace

Result<std::shared_ptr<PeerProcess>> PeerProcess::connect(const ProcessInfo& peer,
                                                          Deadline deadline, uint64_t own_nonce) {
  auto process = std::shared_ptr<PeerProcess>(new PeerProcess);
  process->nonce_ = peer.nonce;
  process->own_nonce_ = own_nonce;
  ZBCCL_ASSIGN_OR_RETURN(process->connection_, connect_unix(socket_name(peer.nonce), deadline));
  const int socket = process->connection_.get();
  ZBCCL_ASSIGN_OR_RETURN(process->pid_, peer_pid(socket));
  ZBCCL_ASSIGN_OR_RETURN(const ExchangeWelcome welcome, prove(socket, peer.secret, deadline));
  process->life_.reset(static_cast<int>(syscall(SYS_pidfd_open, process->pid_, 0)));
  process->attachable_ = env::get_bool("ZBCCL_CMA") &&
                         attach_probe(process->pid_, welcome.probe_address, welcome.probe_value);
  if (!process->life_.valid()) {
    log::info(log::Subsys::kFault, "no pidfd for process {}; its connection tells of its death",
              process->pid_);
  }
  return process;
}

std::shared_ptr<PeerProcess> PeerProcess::self(const ProcessInfo& info) {
  auto process = std::shared_ptr<PeerProcess>(new PeerProcess);
  process->self_ = true;
  process->attachable_ = true;
  process->nonce_ = info.nonce;
  process->pid_ = info.pid;
  return process;
}

PeerProcess::~PeerProcess() {
  for (auto& acks : acks_) delete acks.load(std::memory_order_relaxed);
}

bool PeerProcess::dead() const {
  if (self_) return false;
  pollfd item = {life_fd(), static_cast<short>(has_pidfd() ? POLLIN : POLLRDHUP), 0};
  return poll(&item, 1, 0) > 0;
}

// Until the service has something to read or has hung up.
Status PeerProcess::await_reply(Deadline deadline, const Cancelled& cancelled) const {
  for (;;) {
    pollfd item = {connection_.get(), POLLIN, 0};
    const auto slice = static_cast<int>(std::min(deadline.left(), kLook).count());
    if (poll(&item, 1, slice) > 0) return {};
    ZBCCL_RETURN_IF_ERROR(check_wait(deadline, cancelled));
  }
}

bool PeerProcess::stopped() const {
  if (self_) return false;
  // pid (name) state ...; the name may hold anything.
  std::ifstream file(format("/proc/{}/stat", pid_));
  std::string line;
  std::getline(file, line);
  const size_t name_end = line.rfind(')');
  if (name_end == std::string::npos || name_end + 2 >= line.size()) return false;
  const char state = line[name_end + 2];
  return state == 'T' || state == 't';
}

Result<std::byte*> PeerProcess::import_segment(uint32_t number, Deadline deadline,
                                               const Cancelled& cancelled) {
  if (self_) {
    std::byte* base = Pool::process().segment_base(number);
    if (base == nullptr) return error(Code::kInternal, "own segment {} does not exist", number);
    if (number < kMaxSegments) bases_[number].store(base, std::memory_order_release);
    return base;
  }
  if (number >= kMaxSegments) {
    return error(Code::kInternal, "process {} names segment {}, the last possible is {}", pid_,
                 number, kMaxSegments - 1);
  }
  std::unique_lock<std::mutex> lock;
  ZBCCL_RETURN_IF_ERROR(lock_connection(&lock, deadline, cancelled));
  if (std::byte* base = bases_[number].load(std::memory_order_acquire)) return base;
  ExchangeRequest request;
  request.segment = number;
  UniqueFd fd;
  ZBCCL_ASSIGN_OR_RETURN(const ExchangeReply reply, ask(request, -1, &fd, deadline, cancelled));
  if (reply.code != 0 || !fd.valid()) {
    return error(Code::kRevoked, "process {} has no segment {}", pid_, number);
  }
  ZBCCL_ASSIGN_OR_RETURN(mappings_[number], map_segment(fd.get(), reply.reserve));
  std::byte* base = mappings_[number].base();
  bases_[number].store(base, std::memory_order_release);
  log::trace(log::Subsys::kMem, "imported segment {} of process {}, {} bytes reserved", number,
             pid_, reply.reserve);
  return base;
}

// Another thread's request may wait for longer than this one may.
Status PeerProcess::lock_connection(std::unique_lock<std::mutex>* lock, Deadline deadline,
                                    const Cancelled& cancelled) {
  *lock = std::unique_lock(mutex_, std::try_to_lock);
  while (!lock->owns_lock()) {
    ZBCCL_RETURN_IF_ERROR(check_wait(deadline, cancelled));
    std::this_thread::sleep_for(Milliseconds(1));
    (void)lock->try_lock();
  }
  return {};
}

// One request and its answer; the caller holds the connection.
Result<ExchangeReply> PeerProcess::ask(ExchangeRequest request, int fd, UniqueFd* received,
                                       Deadline deadline, const Cancelled& cancelled) {
  request.id = ++last_id_;
  ZBCCL_RETURN_IF_ERROR(send_message(connection_.get(), as_message(request), fd));
  ExchangeReply reply;
  do {  // answers to requests that were given up are dropped
    ZBCCL_RETURN_IF_ERROR(await_reply(deadline, cancelled));
    received->reset();
    ZBCCL_RETURN_IF_ERROR(receive_message(connection_.get(), as_buffer(reply), received, deadline));
  } while (reply.id != request.id);
  return reply;
}

Status PeerProcess::push_chunk(const DeviceChunk& chunk, int fd, Deadline deadline,
                               const Cancelled& cancelled) {
  ExchangeRequest request;
  request.kind = static_cast<uint32_t>(ExchangeKind::kDeviceChunk);
  request.chunk = chunk;
  const auto reply = ask_until_done(request, fd, deadline, cancelled);
  return reply.ok() ? Status() : reply.status();
}

Status PeerProcess::drop_segment(const DeviceChunk& segment, Deadline deadline,
                                 const Cancelled& cancelled) {
  ExchangeRequest request;
  request.kind = static_cast<uint32_t>(ExchangeKind::kDropDevice);
  request.chunk = segment;
  const auto reply = ask_until_done(request, -1, deadline, cancelled);
  return reply.ok() ? Status() : reply.status();
}

Result<ProbePlace> PeerProcess::probe_place(const std::array<uint8_t, 16>& device,
                                            Deadline deadline) {
  ExchangeRequest request;
  request.kind = static_cast<uint32_t>(ExchangeKind::kProbePlace);
  request.chunk.device = device;
  ZBCCL_ASSIGN_OR_RETURN(const ExchangeReply reply, ask_until_done(request, -1, deadline, {}));
  return reply.probe;
}

Status PeerProcess::probe_check(const std::array<uint8_t, 16>& device, const ProbePlace& place,
                                Deadline deadline) {
  ExchangeRequest request;
  request.kind = static_cast<uint32_t>(ExchangeKind::kProbeCheck);
  request.chunk.device = device;
  request.probe = place;
  const auto reply = ask_until_done(request, -1, deadline, {});
  return reply.ok() ? Status() : reply.status();
}

Result<ExchangeReply> PeerProcess::ask_until_done(const ExchangeRequest& request, int fd,
                                                  Deadline deadline, const Cancelled& cancelled) {
  if (self_ || own_nonce_ == 0) {
    return error(Code::kInternal, "process {} takes no device memory of this process", pid_);
  }
  ExchangeRequest mine = request;
  mine.owner = own_nonce_;
  const std::string who = format("process {}", pid_);
  std::string waiting = who;
  for (auto pause = std::chrono::microseconds(100);; pause = std::min(2 * pause, kLongestPause)) {
    Result<ExchangeReply> reply = [&]() -> Result<ExchangeReply> {
      std::unique_lock<std::mutex> lock;
      ZBCCL_RETURN_IF_ERROR(lock_connection(&lock, deadline, cancelled));
      UniqueFd unused;
      return ask(mine, fd, &unused, deadline, cancelled);
    }();
    if (!reply.ok()) {
      const bool ended = reply.status().code() == Code::kNetwork && dead();
      if (ended) return error(Code::kRemoteFailed, "process {} has ended", pid_);
      return reply.status().with_prefix(reply.status().code() == Code::kTimeout ? waiting : who);
    }
    reply->text[sizeof reply->text - 1] = '\0';
    if (reply->later == 0) {
      const bool known = reply->code >= 0 && reply->code < kNumCodes;
      const Code code = known ? static_cast<Code>(reply->code) : Code::kInternal;
      if (code == Code::kOk) return reply;
      return error(code, "process {}: {}", pid_, reply->text);
    }
    waiting = format("process {} ({})", pid_, reply->text);
    std::this_thread::sleep_for(pause);
    if (const Status wait = check_wait(deadline, cancelled); !wait.ok()) {
      return wait.with_prefix(waiting);
    }
  }
}

void PeerProcess::acknowledge(int device, uint32_t segment, uint64_t count) {
  std::atomic<Acknowledged*>& slot = acks_[static_cast<size_t>(device)];
  Acknowledged* acks = slot.load(std::memory_order_acquire);
  if (acks == nullptr) {
    auto fresh = std::make_unique<Acknowledged>();
    if (slot.compare_exchange_strong(acks, fresh.get(), std::memory_order_acq_rel)) {
      acks = fresh.release();
    }
  }
  std::atomic<uint64_t>& value = (*acks)[segment];
  uint64_t before = value.load(std::memory_order_relaxed);
  while (before < count && !value.compare_exchange_weak(before, count)) {
  }
}

}  // namespace zbccl::memory
