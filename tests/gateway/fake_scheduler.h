#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "weir/scheduler/v1/scheduler.pb.h"

// A scheduler that does what a test says, over real gRPC.

namespace weir::gateway {

class FakeScheduler {
 public:
  // address: "unix:/path" or "127.0.0.1:0".
  explicit FakeScheduler(std::string address);
  ~FakeScheduler();

  // Ends all streams, as a killed process would.
  void Kill();
  // On the same address again.
  void Restart();
  const std::string& address() const { return address_; }

  // What the gateway learns of the replica.  By default: ready, context of 2,000 tokens, 300 ids.
  void SetReplica(const scheduler::v1::Replica& replica);
  static scheduler::v1::Replica Ready();

  // The next one, waited for; nothing after 10 s.
  std::optional<scheduler::v1::Submit> NextSubmit();
  std::optional<scheduler::v1::Cancel> NextCancel();
  std::optional<scheduler::v1::GatewayHello> NextHello();
  bool HasSubmit() const;

  // Instead of NextSubmit and NextCancel: called on the stream's thread.
  void OnSubmit(std::function<void(const scheduler::v1::Submit&)> on_submit);

  // To the gateway that is connected.  False: nobody is, or it does not listen any more.
  bool Send(const scheduler::v1::StepOutput& output);
  void Admit(uint64_t number);
  void Token(uint64_t number, uint32_t index, uint32_t token);
  void End(uint64_t number, scheduler::v1::EndReason reason);

 private:
  class Service;
  class Parts;

  const std::string address_;
  std::unique_ptr<Parts> parts_;
};

}  // namespace weir::gateway
