#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "worker/model/plan_fields.h"

// What a tool and a rank process say to each other, over a socket pair.
//
//   tool -> rank:  kPlan                          one step
//   rank -> tool:  kProgress ...  kReady          while loading, and once loaded and connected to the other ranks
//                  kResult | kFailed              for each plan
//
// Both ends are one program, so there are no versions; a message is believed as far as its length goes.

namespace weir::tools {

enum class MessageKind : uint32_t { kPlan, kProgress, kReady, kResult, kRefused, kFailed };

struct Message {
  MessageKind kind = MessageKind::kPlan;
  std::vector<std::byte> bytes;
};

// Owns one end of a socket pair.
class RankChannel {
 public:
  RankChannel() = default;
  explicit RankChannel(int fd) : fd_(fd) {}
  RankChannel(RankChannel&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  RankChannel& operator=(RankChannel&& other) noexcept;
  ~RankChannel() { Close(); }

  // Blocks.  UNAVAILABLE when the other end is gone.
  absl::Status Send(const Message& message);
  absl::Status Receive(Message& message);

  int fd() const { return fd_; }
  void Close();

 private:
  int fd_ = -1;
};

// ---- contents ----

class ByteWriter {
 public:
  template <typename T>
  void operator()(const T& value) {
    const auto* first = reinterpret_cast<const std::byte*>(&value);
    bytes_.insert(bytes_.end(), first, first + sizeof(T));
  }
  void operator()(const std::string& text) {
    (*this)(static_cast<uint64_t>(text.size()));
    const auto* first = reinterpret_cast<const std::byte*>(text.data());
    bytes_.insert(bytes_.end(), first, first + text.size());
  }
  template <typename T>
  void Size(const std::vector<T>& values) {
    (*this)(static_cast<uint64_t>(values.size()));
  }
  std::vector<std::byte> Take() { return std::move(bytes_); }

 private:
  std::vector<std::byte> bytes_;
};

class ByteReader {
 public:
  explicit ByteReader(std::span<const std::byte> bytes) : rest_(bytes) {}

  template <typename T>
  void operator()(T& value) {
    Copy(&value, sizeof(T));
  }
  void operator()(std::string& text) {
    text.resize(TakeSize());
    Copy(text.data(), text.size());
  }
  template <typename T>
  void Size(std::vector<T>& values) {
    values.resize(TakeSize());
  }
  // Everything was there, and nothing is left.
  bool ok() const { return !is_short_ && rest_.empty(); }

 private:
  // A length; every element takes a byte at least, so a greater one is wrong.
  size_t TakeSize();
  void Copy(void* out, size_t num_bytes);

  std::span<const std::byte> rest_;
  bool is_short_ = false;
};

template <typename T>
Message MessageOf(MessageKind kind, T fields) {
  ByteWriter writer;
  worker::VisitField(writer, fields);
  return {kind, writer.Take()};
}

// False when the bytes are not a T.
template <typename T>
bool Read(const Message& message, T& fields) {
  ByteReader reader(message.bytes);
  worker::VisitField(reader, fields);
  return reader.ok();
}

}  // namespace weir::tools
