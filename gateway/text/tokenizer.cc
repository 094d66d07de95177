#include "gateway/text/tokenizer.h"

#include <fstream>
#include <iterator>
#include <utility>

#include "absl/status/status.h"
#include "gateway/text/utf8.h"
#include "weir_text.h"

namespace weir::gateway {
namespace {

weir_tokenizer* Handle(void* handle) { return static_cast<weir_tokenizer*>(handle); }

}  // namespace

Tokenizer::Tokenizer(void* handle)
    : handle_(handle), vocab_size_(static_cast<int32_t>(weir_tokenizer_vocab_size(Handle(handle)))) {}

Tokenizer::~Tokenizer() { weir_tokenizer_free(Handle(handle_)); }

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::FromJson(std::string_view tokenizer_json) {
  void* handle = weir_tokenizer_open(tokenizer_json.data(), tokenizer_json.size());
  if (handle == nullptr)
    return absl::InvalidArgumentError(std::string("not a usable tokenizer.json: ") + weir_text_error());
  return std::unique_ptr<Tokenizer>(new Tokenizer(handle));
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::FromFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(path + ": cannot be opened; a model directory needs its tokenizer.json");
  const std::string json((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  auto tokenizer = FromJson(json);
  if (!tokenizer.ok()) return absl::InvalidArgumentError(path + ": " + std::string(tokenizer.status().message()));
  return tokenizer;
}

absl::StatusOr<std::vector<TokenId>> Tokenizer::Encode(std::string_view text, bool with_added_tokens) const {
  // A token is at least one byte of text, so this always fits.
  std::vector<uint32_t> ids(text.size());
  const int64_t count =
      weir_encode(Handle(handle_), text.data(), text.size(), with_added_tokens ? 1 : 0, ids.data(), ids.size());
  if (count < 0) return absl::InvalidArgumentError(std::string("text cannot be encoded: ") + weir_text_error());
  return std::vector<TokenId>(ids.begin(), ids.begin() + count);
}

std::optional<TokenId> Tokenizer::AddedToken(std::string_view text) const {
  const int64_t id = weir_added_token_id(Handle(handle_), text.data(), text.size());
  if (id < 0) return std::nullopt;
  return static_cast<TokenId>(id);
}

std::string_view Tokenizer::TokenBytes(TokenId id) const {
  if (id < 0) return {};
  size_t size = 0;
  const char* bytes = weir_token_bytes(Handle(handle_), static_cast<uint32_t>(id), &size);
  return {bytes, size};
}

std::string Tokenizer::Decode(const std::vector<TokenId>& ids) const {
  Utf8Stream stream;
  std::string text;
  for (const TokenId id : ids) stream.Append(TokenBytes(id), text);
  stream.Finish(text);
  return text;
}

}  // namespace weir::gateway
