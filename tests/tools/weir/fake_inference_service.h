#pragma once

#include <memory>
#include <string>
#include <vector>

#include "weir/v1/inference.pb.h"

// A gateway without a model, in this process: what it answers follows from what it is asked.
//
//   Chat       thinks "hm. " and says "You said: " and the last message, a token a word.  "slow" among the words: a
//   token every
//              10 ms, until the client goes.  A message "refuse": INVALID_ARGUMENT with the field.  "overload":
//              RESOURCE_EXHAUSTED with a time to come back.  "break": the stream ends in an error.
//   Generate   max_tokens tokens " w", one message each, every `token_interval_us`.
//   Tokenize   a token a byte; a conversation is rendered as "role: content\n" a message.

namespace weir::tools {

class FakeGateway {
 public:
  struct Options {
    std::string key;  // what calls must bring; empty: nothing
    int token_interval_us = 0;
    std::vector<std::string> models = {"fake"};
  };
  explicit FakeGateway(const Options& options);
  FakeGateway() : FakeGateway(Options{}) {}
  ~FakeGateway();

  const std::string& address() const { return address_; }
  std::vector<v1::ChatRequest> chats() const;
  std::vector<v1::GenerateRequest> generations() const;
  int num_cancelled() const;
  int max_concurrent() const;  // generations

 private:
  class Service;
  struct Server;
  std::unique_ptr<Service> service_;
  std::unique_ptr<Server> server_;
  std::string address_;
};

}  // namespace weir::tools
