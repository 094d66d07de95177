#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

// The threads that check, render and tokenize, so that no stream waits for a long prompt of somebody else.  Tenants
// take turns: whoever sends many long prompts waits behind his own.

namespace weir::gateway {

class TextPool {
 public:
  TextPool(int32_t num_threads, int64_t max_waiting_bytes);
  ~TextPool();  // runs what waits, then ends

  // `bytes`: of the request that the job works on.  False: too much waits; the job is not taken.
  bool Post(const std::string& tenant, int64_t bytes, std::function<void()> job);

  int64_t waiting_bytes() const;
  int64_t max_waiting_bytes() const { return max_waiting_bytes_; }

 private:
  struct Job {
    int64_t bytes = 0;
    std::function<void()> run;
  };

  void Work();
  Job TakeNext();

  const int64_t max_waiting_bytes_;
  mutable std::mutex mutex_;
  std::condition_variable arrived_;
  std::map<std::string, std::deque<Job>> waiting_;  // by tenant; none empty
  std::deque<std::string> turns_;                   // each waiting tenant once, the next first
  int64_t waiting_bytes_ = 0;
  bool is_ending_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace weir::gateway
