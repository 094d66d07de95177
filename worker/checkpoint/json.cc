#include "worker/checkpoint/json.h"

#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"

namespace weir::worker {
namespace {

using nlohmann::json;

constexpr size_t kMaxQuotedBytes = 200;

// The length of the UTF-8 sequence that begins `text`, 0 when there is none.
size_t SequenceLength(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const size_t length = byte(0) < 0x80 ? 1 : byte(0) < 0xC2 ? 0 : byte(0) < 0xE0 ? 2 : byte(0) < 0xF0 ? 3 : 4;
  if (length == 0 || byte(0) > 0xF4 || length > text.size()) return 0;
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return 0;
  }
  return length;
}

std::string Printable(std::string_view text) {
  std::string printable;
  while (!text.empty() && printable.size() < kMaxQuotedBytes) {
    const size_t length = SequenceLength(text);
    const auto first = static_cast<unsigned char>(text[0]);
    const bool is_c1_control = first == 0xC2 && length == 2 && static_cast<unsigned char>(text[1]) < 0xA0;
    if (length == 0 || first < 0x20 || first == 0x7F || is_c1_control) {
      printable += absl::StrFormat("\\x%02x", first);
      text.remove_prefix(1);
    } else {
      printable += text.substr(0, length);
      text.remove_prefix(length);
    }
  }
  return text.empty() ? printable : printable + "...";
}

// Builds the document as nlohmann's own reader does, but refuses what that one lets pass silently.
class StrictBuilder : public nlohmann::json_sax<json> {
 public:
  bool null() override { return Add(nullptr); }
  bool boolean(bool value) override { return Add(value); }
  bool number_integer(number_integer_t value) override { return Add(value); }
  bool number_unsigned(number_unsigned_t value) override { return Add(value); }
  bool number_float(number_float_t value, const string_t& /*text*/) override { return Add(value); }
  bool string(string_t& value) override { return Add(std::move(value)); }
  bool binary(binary_t& /*value*/) override { return Refuse("binary values are not JSON"); }
  bool start_object(std::size_t /*size*/) override { return Open(json::object()); }
  bool start_array(std::size_t /*size*/) override { return Open(json::array()); }
  bool end_object() override { return Close(); }
  bool end_array() override { return Close(); }

  bool key(string_t& name) override {
    const auto [entry, is_new] = open_.back()->emplace(name, nullptr);
    if (!is_new) return Refuse(absl::StrFormat("the key %s stands twice in one object", Quoted(name)));
    member_ = &entry.value();
    return true;
  }

  bool parse_error(std::size_t /*position*/, const std::string& /*token*/,
                   const nlohmann::detail::exception& error) override {
    const std::string_view message = error.what();
    const size_t end_of_tag = message.find("] ");  // "[json.exception.parse_error.101] "
    return Refuse(Printable(end_of_tag == std::string_view::npos ? message : message.substr(end_of_tag + 2)));
  }

  const std::string& problem() const { return problem_; }
  json TakeDocument() { return std::move(document_); }

 private:
  template <typename Value>
  bool Add(Value&& value) {
    return Place(json(std::forward<Value>(value))) != nullptr;
  }

  bool Open(json container) {
    if (open_.size() >= kMaxJsonDepth) return Refuse(absl::StrFormat("nested deeper than %d levels", kMaxJsonDepth));
    json* placed = Place(std::move(container));
    if (placed != nullptr) open_.push_back(placed);
    return placed != nullptr;
  }

  bool Close() {
    open_.pop_back();
    return true;
  }

  // Where the value came to lie; null when there are too many.  Pointers stay good: an array grows only after the
  // containers inside it are closed, and objects are maps.
  json* Place(json value) {
    if (++num_values_ > kMaxJsonValues) {
      Refuse(absl::StrFormat("more than %d values", kMaxJsonValues));
      return nullptr;
    }
    if (open_.empty()) return &(document_ = std::move(value));
    if (open_.back()->is_array()) return &open_.back()->emplace_back(std::move(value));
    return &(*member_ = std::move(value));
  }

  bool Refuse(std::string problem) {
    problem_ = std::move(problem);
    return false;
  }

  json document_;
  std::vector<json*> open_;
  json* member_ = nullptr;  // the value of the key just read
  int64_t num_values_ = 0;
  std::string problem_;
};

}  // namespace

std::string Quoted(std::string_view text) { return absl::StrFormat("\"%s\"", Printable(text)); }

absl::StatusOr<json> ParseJson(std::string_view text, std::string_view origin) {
  StrictBuilder builder;
  if (!json::sax_parse(text.begin(), text.end(), &builder)) {
    return absl::InvalidArgumentError(absl::StrFormat("%s: not valid JSON: %s", origin, builder.problem()));
  }
  return builder.TakeDocument();
}

}  // namespace weir::worker
