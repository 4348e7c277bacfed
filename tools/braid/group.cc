#include "tools/braid/group.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <numeric>
#include <thread>
#include <vector>

#include "io/error.h"

#ifdef BRAID_MPI
#include <mpi.h>
#endif

namespace braid {
namespace {

int NumberIn(const char* variable) {
  const char* const text = std::getenv(variable);
  return text == nullptr ? 0 : std::atoi(text);
}

// What the launcher says. A variable that is there, of one process too, hides those of a launcher around it.
struct Launch {
  const char* variable;   // that has the number of processes
  [[maybe_unused]] bool may_talk;

  static Launch Read() {
    if (std::getenv("OMPI_COMM_WORLD_SIZE") != nullptr) return {"OMPI_COMM_WORLD_SIZE", true};   // OpenMPI's mpirun
    if (std::getenv("PMI_SIZE") != nullptr) return {"PMI_SIZE", true};   // others; srun --mpi=pmi2
    // srun --mpi=pmix, or one without MPI. A batch script has SLURM_NTASKS, and is alone.
    return {"SLURM_STEP_NUM_TASKS", std::getenv("PMIX_RANK") != nullptr};
  }
};

// They would all write the same output, each without knowing of the others.
Error CannotTalk(const Launch& launch) {
#ifdef BRAID_MPI
  const char* const together = "start them by mpirun, or by srun --mpi=pmix";
#else
  const char* const together = "this braid was built without MPI: build it where OpenMPI is installed";
#endif
  return Error(ErrorCode::kUsage, fmt::format("{} processes were started together ({}), and cannot talk to each other: "
                                              "each would merge everything",
                                              NumberIn(launch.variable), launch.variable))
      .Hint(fmt::format("{}, or give each its part (in a script that srun starts: --rank $SLURM_PROCID --of "
                        "$SLURM_NTASKS); where each has a merge of its own: env -u {} braid ...",
                        together, launch.variable));
}

#ifdef BRAID_MPI

class MpiGroup : public Group {
 public:
  MpiGroup() {
    int given = 0, rank = 0, size = 0;
    MPI_Init_thread(nullptr, nullptr, MPI_THREAD_MULTIPLE, &given);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    MPI_Comm_dup(MPI_COMM_WORLD, &told_by_);
    MPI_Comm_dup(MPI_COMM_WORLD, &dealt_by_);
    rank_ = static_cast<uint32_t>(rank), of_ = static_cast<uint32_t>(size);
    threads_ = given == MPI_THREAD_MULTIPLE;
    told_.resize(of_);
  }

  uint32_t rank() const override { return rank_; }
  uint32_t of() const override { return of_; }
  void Send(uint32_t to, const void* data, size_t bytes) override {
    MPI_Request request;
    MPI_Isend(data, static_cast<int>(bytes), MPI_BYTE, static_cast<int>(to), 0, MPI_COMM_WORLD, &request);
    Complete(&request);
  }
  void Receive(uint32_t from, void* data, size_t bytes) override {
    MPI_Request request;
    MPI_Irecv(data, static_cast<int>(bytes), MPI_BYTE, static_cast<int>(from), 0, MPI_COMM_WORLD, &request);
    Complete(&request);
  }
  void Broadcast(uint32_t from, void* data, size_t bytes) override {
    MPI_Request request;
    MPI_Ibcast(data, static_cast<int>(bytes), MPI_BYTE, static_cast<int>(from), MPI_COMM_WORLD, &request);
    Complete(&request);
  }
  void Wait() override {
    MPI_Request request;
    MPI_Ibarrier(MPI_COMM_WORLD, &request);
    Complete(&request);
  }
  uint64_t Sum(uint64_t value) override {
    uint64_t sum = 0;
    MPI_Request request;
    MPI_Iallreduce(&value, &sum, 1, MPI_UINT64_T, MPI_SUM, MPI_COMM_WORLD, &request);
    Complete(&request);
    return sum;
  }

  // A thread of rank 0 answers the others.
  uint64_t Next(uint64_t end) override {
    if (!threads_) {   // no thread but ours may speak: every rank gets its turn
      const uint64_t number = rank_ + of_ * asked_++;
      if (number >= end) asked_ = 0;
      return std::min(number, end);
    }
    uint64_t number = 0;
    if (rank_ > 0) {
      MPI_Request request;
      MPI_Isend(&end, 1, MPI_UINT64_T, 0, 0, dealt_by_, &request);
      Complete(&request);
      MPI_Irecv(&number, 1, MPI_UINT64_T, 0, 0, dealt_by_, &request);
      Complete(&request);
      return number;
    }
    if (!dealer_.joinable()) dealer_ = std::thread([this, end] { Deal(end); });
    number = std::min(dealt_.fetch_add(1), end);
    if (number < end) return number;
    dealer_.join();
    dealt_ = 0;
    return end;
  }

  // The others tell rank 0 from time to time; it looks what has come.
  uint64_t Progress(uint64_t bytes) override {
    if (!threads_) return bytes * of_;   // the thread that asks may not speak: a guess
    told_[rank_] = bytes;
    if (rank_ == 0) {
      for (;;) {
        int there = 0;
        MPI_Status status;
        MPI_Iprobe(MPI_ANY_SOURCE, 0, told_by_, &there, &status);
        if (there == 0) break;
        MPI_Recv(&told_[static_cast<size_t>(status.MPI_SOURCE)], 1, MPI_UINT64_T, status.MPI_SOURCE, 0, told_by_,
                 MPI_STATUS_IGNORE);
      }
      return std::accumulate(told_.begin(), told_.end(), uint64_t{0});
    }
    const auto now = std::chrono::steady_clock::now();
    int sent = 1;
    if (telling_ != MPI_REQUEST_NULL) MPI_Test(&telling_, &sent, MPI_STATUS_IGNORE);
    if (sent == 0 || now - last_told_ < std::chrono::milliseconds(500)) return bytes;
    last_told_ = now, message_ = bytes;
    MPI_Isend(&message_, 1, MPI_UINT64_T, 0, 0, told_by_, &telling_);
    return bytes;
  }

 private:
  void Deal(uint64_t end) {
    for (uint32_t ended = 0; ended + 1 < of_;) {
      int there = 0;
      MPI_Status status;
      MPI_Iprobe(MPI_ANY_SOURCE, 0, dealt_by_, &there, &status);
      if (there == 0) {
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
        continue;
      }
      uint64_t asked = 0;
      MPI_Recv(&asked, 1, MPI_UINT64_T, status.MPI_SOURCE, 0, dealt_by_, MPI_STATUS_IGNORE);
      const uint64_t number = std::min(dealt_.fetch_add(1), end);
      MPI_Send(&number, 1, MPI_UINT64_T, status.MPI_SOURCE, 0, dealt_by_);
      ended += number == end;
    }
  }

  // MPI's own waiting takes a core, which the merge of another rank can use.
  static void Complete(MPI_Request* request) {
    auto pause = std::chrono::microseconds(5);
    for (int done = 0;;) {
      MPI_Test(request, &done, MPI_STATUS_IGNORE);
      if (done != 0) return;
      std::this_thread::sleep_for(pause);
      pause = std::min(pause * 2, std::chrono::microseconds(1000));
    }
  }

  uint32_t rank_ = 0, of_ = 1;
  bool threads_ = false;
  MPI_Comm told_by_ = MPI_COMM_NULL, dealt_by_ = MPI_COMM_NULL;
  std::atomic<uint64_t> dealt_{0};
  std::thread dealer_;
  uint64_t asked_ = 0;
  std::vector<uint64_t> told_;
  uint64_t message_ = 0;
  MPI_Request telling_ = MPI_REQUEST_NULL;
  std::chrono::steady_clock::time_point last_told_;
};

MpiGroup* g_group = nullptr;

#endif

}  // namespace

Group* JoinGroup() {
  const Launch launch = Launch::Read();
  if (NumberIn(launch.variable) <= 1) return nullptr;
#ifdef BRAID_MPI
  if (launch.may_talk) {
    g_group = new MpiGroup();   // until the process ends
    if (g_group->of() > 1) return g_group;
    g_group = nullptr;   // an MPI that does not know this launcher: each process finds itself alone
    MPI_Finalize();
  }
#endif
  throw CannotTalk(launch);
}

void LetEarlierRanksSpeak() {
#ifdef BRAID_MPI
  if (g_group != nullptr)
    std::this_thread::sleep_for(std::min(g_group->rank() * std::chrono::milliseconds(400), std::chrono::milliseconds(4000)));
#endif
}

void LeaveGroup([[maybe_unused]] int status) {
#ifdef BRAID_MPI
  if (g_group == nullptr) return;
  if (status != 0) MPI_Abort(MPI_COMM_WORLD, status);
  MPI_Finalize();
#endif
}

}  // namespace braid
