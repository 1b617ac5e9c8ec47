#include "bootstrap/meeting_file.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <ctime>
#include <memory>

#include "base/fd.h"

namespace zbccl::bootstrap {
namespace {

constexpr size_t kMaxFileBytes = 1024;
constexpr size_t kMaxNameBytes = 120;
// A run that was killed before its ranks had met leaves its file behind; it goes after a day.
constexpr time_t kStaleSeconds = 24 * 3600;

Status check_private(const struct stat& info, const std::string& path, bool root_may_own) {
  const bool owned = info.st_uid == ::geteuid() || (root_may_own && info.st_uid == 0);
  if (!owned || (info.st_mode & 077) != 0) {
    return error(Code::kInvalidUsage,
                 "{} must belong to this user and be closed to all others (it belongs to user {} "
                 "and has mode {:o}): mend it with chown and chmod go=, or remove it",
                 path, info.st_uid, info.st_mode & 07777);
  }
  return {};
}

Status make_private_directory(const std::string& path) {
  if (::mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) {
    return system_error("mkdir " + path, errno);
  }
  struct stat info {};
  // Not through a link: in a directory that all may write to, someone else may have put one there.
  if (::lstat(path.c_str(), &info) != 0) return system_error("lstat " + path, errno);
  if (!S_ISDIR(info.st_mode)) {
    return error(Code::kInvalidUsage, "{} is no directory: remove it", path);
  }
  return check_private(info, path, false);
}

std::string base_directory() {
  const char* runtime = std::getenv("XDG_RUNTIME_DIR");
  if (runtime != nullptr && *runtime == '/' && ::access(runtime, W_OK | X_OK) == 0) {
    return std::string(runtime) + "/zbccl";
  }
  const char* temporary = std::getenv("TMPDIR");
  const std::string base = temporary != nullptr && *temporary == '/' ? temporary : "/tmp";
  return format("{}/zbccl-{}", base, ::geteuid());
}

std::string file_name(const std::string& job) {
  std::string name = job.substr(0, kMaxNameBytes);
  for (char& c : name) {
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
    if (!plain && c != '-') c = '_';
  }
  return name;
}

void remove_stale(const std::string& directory) {
  const std::unique_ptr<DIR, int (*)(DIR*)> list(::opendir(directory.c_str()), &::closedir);
  if (list == nullptr) return;
  while (const dirent* entry = ::readdir(list.get())) {
    struct stat info {};
    const int fd = ::dirfd(list.get());
    if (::fstatat(fd, entry->d_name, &info, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(info.st_mode) &&
        info.st_mtime + kStaleSeconds < ::time(nullptr)) {
      ::unlinkat(fd, entry->d_name, 0);
    }
  }
}

Result<std::string> read_private(const std::string& path, int flags, bool root_may_own) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | flags));
  if (!fd.valid()) return system_error("open " + path, errno);
  struct stat info {};
  if (::fstat(fd.get(), &info) != 0) return system_error("fstat " + path, errno);
  if (!S_ISREG(info.st_mode)) return error(Code::kInvalidUsage, "{} is no regular file", path);
  ZBCCL_RETURN_IF_ERROR(check_private(info, path, root_may_own));
  std::string text(kMaxFileBytes, '\0');
  size_t size = 0;
  while (size < text.size()) {
    const ssize_t got = ::read(fd.get(), text.data() + size, text.size() - size);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return system_error("read " + path, errno);
    if (got == 0) break;
    size += static_cast<size_t>(got);
  }
  text.resize(size);
  while (!text.empty() && (text.back() == '\n' || text.back() == '\r' || text.back() == ' ')) {
    text.pop_back();
  }
  return text;
}

}  // namespace

Result<MeetingFile> MeetingFile::open(const std::string& job) {
  const std::string directory = base_directory();
  ZBCCL_RETURN_IF_ERROR(make_private_directory(directory));
  return MeetingFile(directory + "/" + file_name(job));
}

Status MeetingFile::write(const UniqueId& id) const {
  remove_stale(path_.substr(0, path_.rfind('/')));
  const std::string temporary = format("{}.{}", path_, ::getpid());
  (void)::unlink(temporary.c_str());  // of a process that had this number before
  const UniqueFd fd(
      ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
  if (!fd.valid()) return system_error("open " + temporary, errno);
  const std::string text = id.to_string() + "\n";
  if (::write(fd.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size())) {
    const int failure = errno;
    (void)::unlink(temporary.c_str());
    return system_error("write " + temporary, failure);
  }
  if (::rename(temporary.c_str(), path_.c_str()) != 0) {
    const int failure = errno;
    (void)::unlink(temporary.c_str());
    return system_error("rename to " + path_, failure);
  }
  return {};
}

Result<std::optional<UniqueId>> MeetingFile::read() const {
  if (::access(path_.c_str(), F_OK) != 0) return std::optional<UniqueId>();
  auto text = read_private(path_, O_NOFOLLOW, false);
  if (!text.ok()) {
    // Removed just now: as good as absent.
    if (::access(path_.c_str(), F_OK) != 0) return std::optional<UniqueId>();
    return text.status();
  }
  auto id = UniqueId::parse(*text);
  if (!id.ok()) return std::optional<UniqueId>();
  return std::optional<UniqueId>(*id);
}

void MeetingFile::remove_if(const UniqueId& id) const {
  const auto there = read();
  if (there.ok() && there->has_value() && (*there)->to_string() == id.to_string()) {
    (void)::unlink(path_.c_str());
  }
}

Result<Secret> read_secret_file(const std::string& path) {
  ZBCCL_ASSIGN_OR_RETURN(const std::string text, read_private(path, 0, true));
  const auto secret = secret_from_hex(text);
  if (!secret) {
    return error(Code::kInvalidUsage,
                 "{} does not hold 64 hexadecimal digits; make it with: (umask 077; openssl rand "
                 "-hex 32 > {})",
                 path, path);
  }
  return *secret;
}

}  // namespace zbccl::bootstrap
