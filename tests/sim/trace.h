#pragma once

#include <cstdint>
#include <string>

#include "scheduler/core/events.h"
#include "scheduler/core/step_plan.h"
#include "tests/sim/request.h"

// What went in and came out, as a hash that two runs compare and as lines that a person reads.

namespace weir::sim {

class Trace {
 public:
  void Add(scheduler::TimeUs now, const scheduler::Event& event);
  void Add(const scheduler::Output& output);
  void Add(const scheduler::StepPlan& plan);
  uint64_t hash() const { return hash_; }

  // The line of an event; its number is the one to give to --events.
  static std::string Line(int64_t number, scheduler::TimeUs now, const char* what);
  static std::string Line(int64_t number, scheduler::TimeUs now, const char* what, uint64_t epoch_or_id, uint64_t step);
  static std::string Line(int64_t number, scheduler::TimeUs now, const char* what,
                          const scheduler::GroupFormed& formed);
  static std::string Line(int64_t number, scheduler::TimeUs now, const Request& arriving);
  // What follows an event, indented.
  static std::string Note(scheduler::TimeUs now, const char* what);
  static std::string Note(scheduler::TimeUs now, const scheduler::Output& output);
  static std::string Note(scheduler::TimeUs now, const scheduler::StepPlan& plan);
  static const char* Legend();

 private:
  void Fold(uint64_t value) { hash_ = Mix(hash_ ^ value); }

  uint64_t hash_ = 0;
};

}  // namespace weir::sim
