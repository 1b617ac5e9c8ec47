// Rendezvous from the environment: who wins, what is refused, and ranks as processes that meet.
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <filesystem>
#include <fstream>

#include "base/log.h"
#include "bootstrap/launcher.h"
#include "bootstrap/meeting_file.h"
#include "bootstrap_support.h"

namespace zbccl::bootstrap::test {
namespace {

using Variables = std::map<std::string, std::optional<std::string>>;

// Everything that from_environment() looks at, unset, then `set`.
Variables only(const Variables& set) {
  Variables all;
  for (const char* name : {"ZBCCL_RANK",
                           "ZBCCL_WORLD_SIZE",
                           "ZBCCL_LOCAL_RANK",
                           "ZBCCL_UNIQUE_ID",
                           "ZBCCL_SECRET_FILE",
                           "RANK",
                           "WORLD_SIZE",
                           "LOCAL_RANK",
                           "LOCAL_WORLD_SIZE",
                           "MASTER_ADDR",
                           "MASTER_PORT",
                           "TORCHELASTIC_RUN_ID",
                           "TORCHELASTIC_RESTART_COUNT",
                           "TORCHELASTIC_USE_AGENT_STORE",
                           "SLURM_PROCID",
                           "SLURM_NTASKS",
                           "SLURM_NPROCS",
                           "SLURM_STEP_NUM_TASKS",
                           "SLURM_LOCALID",
                           "SLURM_NNODES",
                           "SLURM_STEP_NUM_NODES",
                           "SLURM_JOB_ID",
                           "SLURM_JOBID",
                           "SLURM_STEP_ID",
                           "OMPI_COMM_WORLD_RANK",
                           "OMPI_COMM_WORLD_SIZE",
                           "OMPI_COMM_WORLD_LOCAL_RANK",
                           "OMPI_COMM_WORLD_LOCAL_SIZE",
                           "PMIX_NAMESPACE",
                           "OMPI_MCA_ess_base_jobid",
                           "PMI_RANK",
                           "PMI_SIZE",
                           "PMI_JOBID",
                           "MPI_LOCALRANKID",
                           "MPI_LOCALNRANKS"}) {
    all[name] = std::nullopt;
  }
  for (const auto& [name, value] : set) all[name] = value;
  return all;
}

// A directory that goes with the object.
class Directory {
 public:
  Directory() {
    char name[] = "/tmp/zbccl-test-XXXXXX";
    path_ = ::mkdtemp(name);
  }
  Directory(const Directory&) = delete;
  Directory& operator=(const Directory&) = delete;
  ~Directory() { std::filesystem::remove_all(path_); }
  const std::string& path() const { return path_; }
  size_t files() const {
    size_t count = 0;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(path_)) {
      count += entry.is_regular_file() ? 1 : 0;
    }
    return count;
  }

 private:
  std::string path_;
};

std::string write_private(const std::string& path, const std::string& text, mode_t mode = 0600) {
  std::ofstream(path) << text;
  ::chmod(path.c_str(), mode);
  return path;
}

// Ranks as processes. Each returns 0 from `body` or the test fails.
void on_processes(int count, const std::function<int(int)>& body) {
  std::vector<pid_t> processes;
  for (int i = 0; i < count; ++i) {
    const pid_t process = ::fork();
    if (process == 0) {
      const int code = body(i);
      std::exit(code);  // with static destructors, as a program ends
    }
    processes.push_back(process);
  }
  for (int i = 0; i < count; ++i) {
    int status = 0;
    ASSERT_EQ(::waitpid(processes[static_cast<size_t>(i)], &status, 0),
              processes[static_cast<size_t>(i)]);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << "rank " << i << ": " << status;
  }
}

// From the environment to a join and an exchange; 0 if all is well.
int meet_and_join(int rank, int nranks, int deadline_ms = 60'000) {
  auto found = from_environment(in(deadline_ms));
  if (!found.ok()) {
    std::fprintf(stderr, "rank %d: %s\n", rank, found.status().to_string().c_str());
    return 1;
  }
  if (found->rank != rank || found->nranks != nranks) return 2;
  const auto hellos = join(*found->store, "job", rank, nranks, std::to_string(rank), soon());
  if (!hellos.ok()) {
    std::fprintf(stderr, "rank %d: %s\n", rank, hellos.status().to_string().c_str());
    return 3;
  }
  for (int r = 0; r < nranks; ++r) {
    if ((*hellos)[static_cast<size_t>(r)] != std::to_string(r)) return 4;
  }
  return 0;
}

uint16_t free_port() { return serve().id.port; }

TEST(FromEnvironment, NothingIsASingleRank) {
  const Environment environment(only({}));
  const auto found = from_environment(soon());
  ASSERT_TRUE(found.ok());
  EXPECT_EQ(found->source, "single rank");
  EXPECT_EQ(found->nranks, 1);
  EXPECT_TRUE(found->store->set("k", "v").ok());
}

TEST(FromEnvironment, TheOrderIsZbcclTorchrunSlurmOpenMpiMpich) {
  const std::vector<std::pair<Variables, Launcher>> kinds{
      {{{"PMI_RANK", "1"}, {"PMI_SIZE", "2"}, {"MPI_LOCALRANKID", "5"}}, Launcher::kMpich},
      {{{"OMPI_COMM_WORLD_RANK", "1"},
        {"OMPI_COMM_WORLD_SIZE", "2"},
        {"OMPI_COMM_WORLD_LOCAL_RANK", "5"}},
       Launcher::kOpenMpi},
      {{{"SLURM_PROCID", "1"},
        {"SLURM_NTASKS", "2"},
        {"SLURM_LOCALID", "5"},
        {"SLURM_JOB_ID", "9"},
        {"SLURM_STEP_ID", "0"}},
       Launcher::kSlurm},
      {{{"RANK", "1"}, {"WORLD_SIZE", "2"}, {"LOCAL_RANK", "5"}}, Launcher::kTorchrun},
      {{{"ZBCCL_RANK", "1"},
        {"ZBCCL_WORLD_SIZE", "2"},
        {"ZBCCL_LOCAL_RANK", "5"},
        {"ZBCCL_UNIQUE_ID", "anything"}},
       Launcher::kZbccl}};
  Variables set;
  for (const auto& [more, launcher] : kinds) {
    for (const auto& [name, value] : more) set[name] = value;
    const Environment environment(only(set));
    const auto found = find_placement();
    ASSERT_TRUE(found.ok() && found->has_value()) << found.status().to_string();
    EXPECT_EQ((*found)->launcher, launcher);
    EXPECT_EQ((*found)->rank, 1);
    EXPECT_EQ((*found)->nranks, 2);
    EXPECT_EQ((*found)->local_rank, 5);
  }
}

TEST(FromEnvironment, HalfASetNamesWhatIsMissing) {
  const std::vector<std::pair<Variables, std::string>> halves{
      {{{"ZBCCL_RANK", "0"}}, "ZBCCL_WORLD_SIZE"},
      {{{"ZBCCL_WORLD_SIZE", "2"}}, "ZBCCL_RANK"},
      {{{"ZBCCL_RANK", "0"}, {"ZBCCL_WORLD_SIZE", "2"}}, "ZBCCL_UNIQUE_ID"},
      {{{"ZBCCL_UNIQUE_ID", "x"}}, "ZBCCL_RANK"},
      {{{"RANK", "0"}}, "WORLD_SIZE"},
      {{{"WORLD_SIZE", "2"}}, "RANK"},
      {{{"RANK", "0"}, {"WORLD_SIZE", "2"}}, "MASTER_ADDR"},
      {{{"RANK", "0"}, {"WORLD_SIZE", "2"}, {"MASTER_ADDR", "127.0.0.1"}}, "MASTER_PORT"},
      {{{"SLURM_PROCID", "0"}}, "SLURM_STEP_NUM_TASKS"},
      {{{"OMPI_COMM_WORLD_RANK", "0"}}, "OMPI_COMM_WORLD_SIZE"},
      {{{"OMPI_COMM_WORLD_SIZE", "2"}}, "OMPI_COMM_WORLD_RANK"},
      {{{"PMI_RANK", "0"}}, "PMI_SIZE"}};
  for (const auto& [set, missing] : halves) {
    const Environment environment(only(set));
    const auto found = from_environment(soon());
    ASSERT_FALSE(found.ok()) << missing;
    EXPECT_EQ(found.status().code(), Code::kInvalidUsage);
    EXPECT_NE(found.status().message().find(missing), std::string::npos)
        << found.status().message();
  }
}

TEST(FromEnvironment, BadNumbersAreRefused) {
  const std::vector<Variables> bad{
      {{"ZBCCL_RANK", "2"}, {"ZBCCL_WORLD_SIZE", "2"}, {"ZBCCL_UNIQUE_ID", "x"}},
      {{"ZBCCL_RANK", "-1"}, {"ZBCCL_WORLD_SIZE", "2"}, {"ZBCCL_UNIQUE_ID", "x"}},
      {{"RANK", "one"}, {"WORLD_SIZE", "2"}},
      {{"RANK", "0"}, {"WORLD_SIZE", "2.0"}},
      {{"PMI_RANK", "0"}, {"PMI_SIZE", "0"}},
      {{"PMI_RANK", "0"}, {"PMI_SIZE", "99999999"}},
      {{"SLURM_PROCID", "1"}, {"SLURM_NTASKS", "14"}, {"SLURM_LOCALID", "-6"}},
      {{"RANK", "0"}, {"WORLD_SIZE", "2"}, {"MASTER_ADDR", "127.0.0.1"}, {"MASTER_PORT", "70000"}}};
  for (const Variables& set : bad) {
    const Environment environment(only(set));
    EXPECT_EQ(from_environment(soon()).status().code(), Code::kInvalidUsage);
  }
}

TEST(FromEnvironment, MalformedUniqueIdIsNotRepeated) {
  const std::string secret = to_hex(some_secret());
  const Environment environment(only(
      {{"ZBCCL_RANK", "0"}, {"ZBCCL_WORLD_SIZE", "2"}, {"ZBCCL_UNIQUE_ID", "host:1/" + secret}}));
  const auto found = from_environment(soon());
  EXPECT_EQ(found.status().code(), Code::kInvalidUsage);
  EXPECT_EQ(found.status().message().find(secret), std::string::npos);
}

TEST(FromEnvironment, NobodyServesForTorchVariablesWithoutAnAgent) {
  const Environment environment(only({{"RANK", "0"},
                                      {"WORLD_SIZE", "2"},
                                      {"MASTER_ADDR", "127.0.0.1"},
                                      {"MASTER_PORT", std::to_string(free_port())}}));
  const auto found = from_environment(in(200));
  EXPECT_EQ(found.status().code(), Code::kInvalidUsage) << found.status().to_string();
  EXPECT_NE(found.status().message().find("TORCHELASTIC_USE_AGENT_STORE"), std::string::npos);
  EXPECT_NE(found.status().message().find("zbccl run"), std::string::npos);
}

TEST(FromEnvironment, SeveralMachinesNeedASecret) {
  const Environment environment(only({{"SLURM_PROCID", "0"},
                                      {"SLURM_NTASKS", "4"},
                                      {"SLURM_NNODES", "2"},
                                      {"SLURM_STEP_ID", "0"},
                                      {"MASTER_ADDR", "127.0.0.1"},
                                      {"MASTER_PORT", "12345"}}));
  const auto found = from_environment(soon());
  EXPECT_EQ(found.status().code(), Code::kInvalidUsage);
  EXPECT_NE(found.status().message().find("ZBCCL_SECRET_FILE"), std::string::npos);
}

TEST(Processes, MeetWithAUniqueId) {
  const UniqueId id{"127.0.0.1", free_port(), some_secret()};
  on_processes(4, [&](int i) {
    if (i == 3) {  // stands for `zbccl run`, which serves and is no rank
      auto server = TcpStoreServer::start(id.host, id.port, id.secret);
      if (!server.ok()) return 9;
      // Until the ranks came and went; none goes before all have come.
      return eventually([&] { return (*server)->abandoned(); }) ? 0 : 8;
    }
    const Environment environment(only({{"ZBCCL_RANK", std::to_string(i)},
                                        {"ZBCCL_WORLD_SIZE", "3"},
                                        {"ZBCCL_UNIQUE_ID", id.to_string()}}));
    return meet_and_join(i, 3);
  });
}

class LauncherTest
    : public testing::TestWithParam<std::pair<const char*, std::function<Variables(int, int)>>> {};

Variables slurm(int rank, int nranks) {
  return {{"SLURM_PROCID", std::to_string(rank)},
          {"SLURM_NTASKS", std::to_string(nranks)},
          {"SLURM_NNODES", "1"},
          {"SLURM_JOB_ID", "4711"},
          {"SLURM_STEP_ID", "0"}};
}

Variables open_mpi(int rank, int nranks) {
  return {{"OMPI_COMM_WORLD_RANK", std::to_string(rank)},
          {"OMPI_COMM_WORLD_SIZE", std::to_string(nranks)},
          {"OMPI_COMM_WORLD_LOCAL_SIZE", std::to_string(nranks)},
          {"PMIX_NAMESPACE", "prterun-host-123@1"}};
}

Variables mpich(int rank, int nranks) {
  return {{"PMI_RANK", std::to_string(rank)}, {"PMI_SIZE", std::to_string(nranks)}};
}

// Two rendezvous in one process, the first one's store still open or not: both complete, and no
// file stays behind.
TEST_P(LauncherTest, RanksOfOneMachineMeetOverAFile) {
  constexpr int kRanks = 4;
  const Directory runtime;
  on_processes(kRanks, [&](int rank) {
    Variables set = GetParam().second(rank, kRanks);
    set["XDG_RUNTIME_DIR"] = runtime.path();
    const Environment environment(only(set));
    std::this_thread::sleep_for(Milliseconds(30 * ((rank + 2) % kRanks)));
    for (int round = 0; round < 3; ++round) {
      const int code = meet_and_join(rank, kRanks);
      if (code != 0) return code;
    }
    return 0;
  });
  EXPECT_EQ(runtime.files(), 0U);
}

INSTANTIATE_TEST_SUITE_P(
    Launchers, LauncherTest,
    testing::ValuesIn(std::vector<std::pair<const char*, std::function<Variables(int, int)>>>{
        {"Slurm", slurm}, {"OpenMpi", open_mpi}, {"Mpich", mpich}}),
    [](const auto& kind) { return std::string(kind.param.first); });

// The name counts the calls of from_environment() in a process; this one made some.
void leave_stale(const Directory& runtime, const UniqueId& id) {
  for (int turn = 1; turn < 100; ++turn) {
    const std::string name = "slurm-4711-0-" + std::to_string(turn) + "-of-2";
    write_private(runtime.path() + "/zbccl/" + name, id.to_string() + "\n");
  }
}

TEST(Processes, AStaleFileIsPassedOver) {
  const Directory runtime;
  ASSERT_EQ(::mkdir((runtime.path() + "/zbccl").c_str(), 0700), 0);
  // What a run with the same job id left when it was killed: a port where nobody listens.
  const UniqueId stale{"127.0.0.1", free_port(), some_secret()};
  leave_stale(runtime, stale);
  on_processes(2, [&](int rank) {
    Variables set = slurm(rank, 2);
    set["XDG_RUNTIME_DIR"] = runtime.path();
    const Environment environment(only(set));
    if (rank == 0) std::this_thread::sleep_for(Milliseconds(200));
    return meet_and_join(rank, 2);
  });
  EXPECT_EQ(runtime.files(), 98U);  // the one that was met over is gone
}

TEST(Processes, AStaleFileWhosePortIsAnothersIsPassedOver) {
  const Directory runtime;
  ASSERT_EQ(::mkdir((runtime.path() + "/zbccl").c_str(), 0700), 0);
  const UniqueId stale{"127.0.0.1", free_port(), some_secret()};
  leave_stale(runtime, stale);
  on_processes(3, [&](int i) {
    if (i == 2) {
      auto other = TcpStoreServer::start(stale.host, stale.port, some_secret(99));
      if (!other.ok()) return 9;
      return eventually([&] { return (*other)->strangers_dropped() > 0; }) ? 0 : 8;
    }
    Variables set = slurm(i, 2);
    set["XDG_RUNTIME_DIR"] = runtime.path();
    const Environment environment(only(set));
    if (i == 0) std::this_thread::sleep_for(Milliseconds(400));
    return meet_and_join(i, 2);
  });
}

TEST(Processes, ARankThatNeverComesIsATimeout) {
  const Directory runtime;
  on_processes(1, [&](int) {
    Variables set = slurm(1, 2);
    set["XDG_RUNTIME_DIR"] = runtime.path();
    const Environment environment(only(set));
    const auto found = from_environment(in(200));
    return found.status().code() == Code::kTimeout ? 0 : 1;
  });
}

TEST(Processes, MeetWithASecretFile) {
  const Directory directory;
  const std::string file =
      write_private(directory.path() + "/secret", to_hex(some_secret()) + "\n");
  const std::string port = std::to_string(free_port());
  on_processes(4, [&](int rank) {
    Variables set = slurm(rank, 4);
    set["SLURM_NNODES"] = "2";
    set["MASTER_ADDR"] = "localhost";
    set["MASTER_PORT"] = port;
    set["ZBCCL_SECRET_FILE"] = file;
    const Environment environment(only(set));
    std::this_thread::sleep_for(Milliseconds(30 * ((rank + 2) % 4)));
    for (int round = 0; round < 3; ++round) {
      const int code = meet_and_join(rank, 4);
      if (code != 0) return code;
    }
    return 0;
  });
}

TEST(SecretFile, MustBePrivateAndWellFormed) {
  const Directory directory;
  const std::string hex = to_hex(some_secret());
  const std::string good = write_private(directory.path() + "/good", hex + "\n");
  EXPECT_EQ(*read_secret_file(good), some_secret());
  const std::string open = write_private(directory.path() + "/open", hex, 0644);
  EXPECT_EQ(read_secret_file(open).status().code(), Code::kInvalidUsage);
  const std::string text = write_private(directory.path() + "/text", "not so secret" + hex);
  EXPECT_EQ(read_secret_file(text).status().code(), Code::kInvalidUsage);
  EXPECT_EQ(read_secret_file(text).status().message().find(hex.substr(0, 8)), std::string::npos);
  EXPECT_EQ(read_secret_file(directory.path()).status().code(), Code::kInvalidUsage);
  EXPECT_EQ(read_secret_file(directory.path() + "/none").status().code(), Code::kSystem);
}

TEST(MeetingFileTest, RefusesWhatOthersCanRead) {
  const Directory runtime;
  const Environment environment(Variables{{"XDG_RUNTIME_DIR", runtime.path()}});
  const UniqueId id{"127.0.0.1", 1, some_secret()};
  const auto file = MeetingFile::open("job/../7");
  ASSERT_TRUE(file.ok()) << file.status().to_string();
  EXPECT_EQ(file->path(), runtime.path() + "/zbccl/job____7");
  EXPECT_FALSE(file->read()->has_value());
  ASSERT_TRUE(file->write(id).ok());
  EXPECT_EQ((*file->read())->to_string(), id.to_string());
  struct stat info {};
  ASSERT_EQ(::stat(file->path().c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600U);

  UniqueId other = id;
  other.port = 2;
  file->remove_if(other);
  EXPECT_TRUE(file->read()->has_value());
  ASSERT_EQ(::chmod(file->path().c_str(), 0640), 0);
  EXPECT_EQ(file->read().status().code(), Code::kInvalidUsage);
  ASSERT_EQ(::chmod(file->path().c_str(), 0600), 0);
  file->remove_if(id);
  EXPECT_EQ(runtime.files(), 0U);

  ASSERT_EQ(::chmod((runtime.path() + "/zbccl").c_str(), 0755), 0);
  EXPECT_EQ(MeetingFile::open("job").status().code(), Code::kInvalidUsage);
}

TEST(HostAddress, IsNumericAndFollowsTheVariable) {
  const UniqueId id{host_address(), 1, some_secret()};
  EXPECT_TRUE(UniqueId::parse(id.to_string()).ok()) << id.host;
  {
    const Environment environment(Variables{{"ZBCCL_HOST_ADDRESS", "192.0.2.7"}});
    EXPECT_EQ(host_address(), "192.0.2.7");
  }
  {
    const Environment environment(Variables{{"ZBCCL_HOST_ADDRESS", "not an address"}});
    const UniqueId other{host_address(), 1, some_secret()};
    EXPECT_TRUE(UniqueId::parse(other.to_string()).ok()) << other.host;
  }
}

// Everything is logged while ranks meet, and no secret is among it.
TEST(Secrets, AreNeverLogged) {
  const Directory directory;
  const std::string log_file = directory.path() + "/log";
  const std::string secret = to_hex(some_secret());
  {
    const Environment environment(
        {{"ZBCCL_DEBUG", "TRACE"}, {"ZBCCL_DEBUG_FILE", log_file}, {"ZBCCL_DEBUG_SUBSYS", "ALL"}});
    log::reconfigure();
    const TestServer server = serve();
    (void)shake_hands(server.id, some_secret(3));
    const Environment ranks(only({{"ZBCCL_RANK", "0"},
                                  {"ZBCCL_WORLD_SIZE", "2"},
                                  {"ZBCCL_UNIQUE_ID", server.id.to_string()}}));
    const auto found = from_environment(soon());
    ASSERT_TRUE(found.ok());
    EXPECT_FALSE(join(*found->store, "job", 0, 2, "", in(20)).ok());
  }
  log::reconfigure();
  std::ifstream file(log_file);
  const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  EXPECT_NE(text.find("by the variables of ZBCCL_*"), std::string::npos) << text;
  EXPECT_NE(text.find("dropped stranger"), std::string::npos) << text;
  EXPECT_EQ(text.find(secret.substr(0, 16)), std::string::npos);
  EXPECT_EQ(text.find(to_hex(some_secret(3)).substr(0, 16)), std::string::npos);
}

}  // namespace
}  // namespace zbccl::bootstrap::test
