#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

// A HuggingFace tokenizer.json.  Immutable; may be used by all threads at once.

namespace weir::gateway {

using TokenId = int32_t;

class Tokenizer {
 public:
  // INVALID_ARGUMENT: not a tokenizer this library knows; the message says what it stumbled over.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> FromJson(std::string_view tokenizer_json);
  // NOT_FOUND or INVALID_ARGUMENT with the path.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> FromFile(const std::string& path);
  ~Tokenizer();

  // Ids of what a person wrote: the text of a control token becomes ordinary pieces.  No BOS.  INVALID_ARGUMENT for
  // text that is not UTF-8.
  absl::StatusOr<std::vector<TokenId>> EncodePlain(std::string_view text) const { return Encode(text, false); }
  // Ids of text in which added tokens count.  No BOS.
  absl::StatusOr<std::vector<TokenId>> EncodeWithAddedTokens(std::string_view text) const { return Encode(text, true); }

  // The id of an added token by its exact text, "<｜User｜>".
  std::optional<TokenId> AddedToken(std::string_view text) const;

  // The bytes a token stands for; they need not be whole UTF-8.  Empty for ids that name nothing.
  std::string_view TokenBytes(TokenId id) const;

  // All at once; invalid UTF-8 comes out as U+FFFD, one per maximal ill-formed part.
  std::string Decode(const std::vector<TokenId>& ids) const;

  // One more than the largest id.  A model's vocabulary may be larger; the ids above stand for nothing.
  int32_t vocab_size() const { return vocab_size_; }

 private:
  explicit Tokenizer(void* handle);
  absl::StatusOr<std::vector<TokenId>> Encode(std::string_view text, bool with_added_tokens) const;

  void* handle_;  // weir_tokenizer of include/weir_text.h
  int32_t vocab_size_;
};

}  // namespace weir::gateway
