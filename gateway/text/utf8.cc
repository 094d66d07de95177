#include "gateway/text/utf8.h"

#include <cstddef>
#include <cstdint>

namespace weir::gateway {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

// What the bytes at the front are (Unicode table 3-7).
struct Front {
  enum class Kind { kWhole, kIllFormed, kUnfinished } kind;
  size_t size;  // bytes of the character, of the ill-formed part, or of the beginning that is there
};

struct Lead {
  size_t size;        // of the character
  uint8_t low, high;  // what the second byte may be
};

Lead LeadOf(uint8_t byte) {
  if (byte < 0x80) return {1, 0, 0};
  if (byte < 0xC2) return {0, 0, 0};  // a continuation, or an overlong lead
  if (byte < 0xE0) return {2, 0x80, 0xBF};
  if (byte == 0xE0) return {3, 0xA0, 0xBF};
  if (byte == 0xED) return {3, 0x80, 0x9F};  // no surrogates
  if (byte < 0xF0) return {3, 0x80, 0xBF};
  if (byte == 0xF0) return {4, 0x90, 0xBF};
  if (byte < 0xF4) return {4, 0x80, 0xBF};
  if (byte == 0xF4) return {4, 0x80, 0x8F};  // nothing above U+10FFFF
  return {0, 0, 0};
}

Front FrontOf(std::string_view bytes) {
  const Lead lead = LeadOf(static_cast<uint8_t>(bytes[0]));
  if (lead.size == 0) return {Front::Kind::kIllFormed, 1};
  for (size_t i = 1; i < lead.size; ++i) {
    if (i == bytes.size()) return {Front::Kind::kUnfinished, i};
    const auto byte = static_cast<uint8_t>(bytes[i]);
    const uint8_t low = i == 1 ? lead.low : 0x80;
    const uint8_t high = i == 1 ? lead.high : 0xBF;
    if (byte < low || byte > high) return {Front::Kind::kIllFormed, i};
  }
  return {Front::Kind::kWhole, lead.size};
}

}  // namespace

void Utf8Stream::Append(std::string_view bytes, std::string& text) {
  std::string joined;
  if (!pending_.empty()) {
    joined = pending_;
    joined.append(bytes);
    bytes = joined;
    pending_.clear();
  }
  while (!bytes.empty()) {
    const Front front = FrontOf(bytes);
    if (front.kind == Front::Kind::kUnfinished) {
      pending_ = std::string(bytes);
      return;
    }
    text.append(front.kind == Front::Kind::kWhole ? bytes.substr(0, front.size) : kReplacement);
    bytes.remove_prefix(front.size);
  }
}

void Utf8Stream::Finish(std::string& text) {
  if (pending_.empty()) return;
  pending_.clear();
  text.append(kReplacement);
}

bool IsValidUtf8(std::string_view text) {
  while (!text.empty()) {
    const Front front = FrontOf(text);
    if (front.kind != Front::Kind::kWhole) return false;
    text.remove_prefix(front.size);
  }
  return true;
}

}  // namespace weir::gateway
