#pragma once

#include <string>
#include <string_view>

// Bytes that arrive in pieces, to whole UTF-8.

namespace weir::gateway {

// Emits every character as soon as its last byte is there.  Ill-formed bytes come out as U+FFFD, one for each maximal
// part that could have begun a character (Unicode 3.9, "substitution of maximal subparts"), so that the concatenated
// output equals the conversion of all bytes at once.
class Utf8Stream {
 public:
  // Appends to `text` what `bytes` complete.  At most 3 bytes stay behind.
  void Append(std::string_view bytes, std::string& text);
  // No more bytes come: an unfinished character becomes U+FFFD.
  void Finish(std::string& text);
  bool has_pending() const { return !pending_.empty(); }

 private:
  std::string pending_;  // a proper prefix of one character
};

bool IsValidUtf8(std::string_view text);

}  // namespace weir::gateway
