#include "gateway/service/wire_message.h"

#include <google/protobuf/message.h>
#include <grpcpp/impl/codegen/proto_utils.h>
#include <grpcpp/support/proto_buffer_reader.h>

#include <string>
#include <vector>

#include "gateway/request/limits.h"
#include "gateway/request/wire_faults.h"

namespace weir::gateway {
namespace {

bool Parse(grpc::ByteBuffer& bytes, google::protobuf::Message& message) {
  grpc::ProtoBufferReader reader(&bytes);
  return reader.status().ok() && message.ParseFromZeroCopyStream(&reader);
}

std::string Flat(const grpc::ByteBuffer& bytes) {
  std::vector<grpc::Slice> slices;
  std::string flat;
  if (!bytes.Dump(&slices).ok()) return flat;
  for (const grpc::Slice& slice : slices) flat.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  return flat;
}

}  // namespace

std::optional<RequestError> ReadMessage(const grpc::ByteBuffer& bytes, google::protobuf::Message& message) {
  const auto size = static_cast<int64_t>(bytes.Length());
  if (size > limits::kMaxRequestBytes) return MessageTooLarge(size);
  // gRPC made them for this call, hands them out as const, and keeps them until its end: minutes, for a stream.
  auto& own = const_cast<grpc::ByteBuffer&>(bytes);
  if (!Parse(own, message)) return MalformedMessage(*message.GetDescriptor(), Flat(bytes));
  own.Clear();
  return std::nullopt;
}

void WriteMessage(const google::protobuf::Message& message, grpc::ByteBuffer& bytes) {
  bytes.Clear();  // writing requires it
  bool is_own = false;
  grpc::SerializationTraits<google::protobuf::Message>::Serialize(message, &bytes, &is_own);
}

}  // namespace weir::gateway
