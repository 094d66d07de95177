#include "gateway/request/wire_faults.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/wire_format_lite.h>

#include <map>
#include <optional>
#include <string>
#include <utility>

#include "gateway/request/limits.h"
#include "gateway/text/utf8.h"

namespace weir::gateway {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::internal::WireFormatLite;
using Violation = RequestError::FieldViolation;

constexpr int kMaxDepth = 100;  // protobuf's own

// Goes through a message as protobuf's parser does, and stops at what that cannot read.
// Source: protobuf.dev/programming-guides/encoding.
class WireWalk {
 public:
  explicit WireWalk(std::string_view bytes)
      : in_(reinterpret_cast<const uint8_t*>(bytes.data()), static_cast<int>(bytes.size())) {
    in_.PushLimit(static_cast<int>(bytes.size()));
  }

  // False: fault() says what is wrong.  `type` is nullptr inside of what no field describes; `group` is the number of
  // the field whose end tag must come, 0 for none.
  bool Message(const Descriptor* type, const std::string& path, uint32_t group = 0) {
    if (depth_++ > kMaxDepth) return Fail(path, "is nested deeper than " + std::to_string(kMaxDepth) + " messages");
    std::map<uint32_t, int> num_seen;
    while (in_.BytesUntilLimit() > 0) {
      const auto read = Varint(5);
      if (!read) return Fail(path, "is cut off inside of a field's number, or the number is too large");
      const auto tag = static_cast<uint32_t>(*read);
      const uint32_t number = tag >> 3;
      if (number == 0) return Fail(path, "has a field with the number 0, which does not exist");
      if (WireFormatLite::GetTagWireType(tag) == WireFormatLite::WIRETYPE_END_GROUP)
        return EndGroup(path, number, group);
      const FieldDescriptor* field = type == nullptr ? nullptr : type->FindFieldByNumber(static_cast<int>(number));
      if (!Value(field, PathOf(path, field, number, num_seen[number]++), tag)) return false;
    }
    --depth_;
    return group == 0 || Fail(path, "is cut off");
  }

  const Violation& fault() const { return fault_; }

 private:
  static std::string PathOf(const std::string& path, const FieldDescriptor* field, uint32_t number, int index) {
    std::string name = field == nullptr ? "field " + std::to_string(number) : field->name();
    if (field != nullptr && field->is_repeated()) name += "[" + std::to_string(index) + "]";
    return path.empty() ? name : path + "." + name;
  }

  bool EndGroup(const std::string& path, uint32_t number, uint32_t group) {
    --depth_;
    return number == group || Fail(path, "ends a group that has not begun");
  }

  // Of at most so many bytes, as protobuf's parser reads them: numbers of fields and sizes are shorter than others.
  std::optional<uint64_t> Varint(int max_bytes) {
    uint64_t value = 0;
    for (int i = 0; i < max_bytes; ++i) {
      uint8_t byte = 0;
      if (!in_.ReadRaw(&byte, 1)) return std::nullopt;
      value |= uint64_t{byte & 0x7fU} << (7 * i);
      if (byte < 0x80) return value;
    }
    return std::nullopt;
  }

  bool Value(const FieldDescriptor* field, const std::string& path, uint32_t tag) {
    switch (tag & 7) {
      case WireFormatLite::WIRETYPE_VARINT:
        return Varint(10) || Fail(path, "is cut off, or a number of more than 64 bits");
      case WireFormatLite::WIRETYPE_FIXED64:
        return in_.Skip(8) || Fail(path, "is cut off inside of a number of 8 bytes");
      case WireFormatLite::WIRETYPE_FIXED32:
        return in_.Skip(4) || Fail(path, "is cut off inside of a number of 4 bytes");
      case WireFormatLite::WIRETYPE_LENGTH_DELIMITED:
        return Bytes(field, path);
      case WireFormatLite::WIRETYPE_START_GROUP:
        return Message(nullptr, path, tag >> 3);
      default:
        return Fail(path, "has wire type " + std::to_string(tag & 7) + ", which does not exist");
    }
  }

  bool Bytes(const FieldDescriptor* field, const std::string& path) {
    const auto size = Varint(5);
    if (!size) return Fail(path, "is cut off inside of its size, or the size is too large");
    const int num_left = in_.BytesUntilLimit();
    if (*size > static_cast<uint64_t>(num_left)) {
      return Fail(path, "is said to be " + std::to_string(*size) + " bytes long, but only " + std::to_string(num_left) +
                            " are left");
    }
    const auto limit = in_.PushLimit(static_cast<int>(*size));
    if (!Inside(field, path, static_cast<int>(*size))) return false;
    in_.PopLimit(limit);
    return true;
  }

  bool Inside(const FieldDescriptor* field, const std::string& path, int size) {
    if (field == nullptr) return in_.Skip(size);
    if (field->type() == FieldDescriptor::TYPE_MESSAGE) return Message(field->message_type(), path);
    if (field->type() == FieldDescriptor::TYPE_STRING) return Text(path, size);
    if (!field->is_packable()) return in_.Skip(size);
    const uint32_t wire_type =
        WireFormatLite::WireTypeForFieldType(static_cast<WireFormatLite::FieldType>(field->type()));
    while (in_.BytesUntilLimit() > 0) {
      if (!Value(nullptr, path, wire_type)) return false;
    }
    return true;
  }

  bool Text(const std::string& path, int size) {
    std::string text;
    in_.ReadString(&text, size);
    return IsValidUtf8(text) || Fail(path, "is not valid UTF-8");
  }

  bool Fail(const std::string& path, const std::string& description) {
    fault_ = {.field = path, .description = description + " (byte " + std::to_string(in_.CurrentPosition()) + ")"};
    return false;
  }

  google::protobuf::io::CodedInputStream in_;
  int depth_ = 0;
  Violation fault_;
};

// The message as a whole has the empty path.
RequestError Invalid(std::string reason, const std::string& because, Violation violation) {
  RequestError error;
  error.code = RequestError::Code::kInvalidArgument;
  error.reason = std::move(reason);
  error.message = because + (violation.field.empty() ? "the message" : violation.field) + " " + violation.description;
  error.violations.push_back(std::move(violation));
  return error;
}

RequestError TooLarge(const std::string& reason, const std::string& field, int64_t bytes, int64_t most) {
  RequestError error = Invalid(
      reason, "",
      {.field = field,
       .description = "has " + std::to_string(bytes) + " bytes; at most " + std::to_string(most) + " are allowed"});
  error.metadata = {{"needed", std::to_string(bytes)}, {"limit", std::to_string(most)}};
  return error;
}

}  // namespace

RequestError MalformedMessage(const Descriptor& type, std::string_view bytes) {
  WireWalk walk(bytes);
  const Violation fault =
      walk.Message(&type, "") ? Violation{.field = "", .description = "cannot be parsed"} : walk.fault();
  return Invalid("MALFORMED_MESSAGE", "the bytes are no " + type.full_name() + ": ", fault);
}

RequestError MessageTooLarge(int64_t bytes) {
  return TooLarge("MESSAGE_TOO_LARGE", "", bytes, limits::kMaxRequestBytes);
}

RequestError MetadataTooLarge(int64_t bytes) {
  return TooLarge("METADATA_TOO_LARGE", "metadata", bytes, limits::kMaxMetadataBytes);
}

}  // namespace weir::gateway
