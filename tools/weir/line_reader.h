#pragma once

#include <memory>
#include <optional>
#include <string>

// Lines that a person types: with editing, history and Ctrl-C for "forget this line" on a terminal (libedit); plainly
// read elsewhere.

namespace weir::tools {

class LineReader {
 public:
  // The history is kept in `history_file` (mode 0600); empty: only while the program runs.
  explicit LineReader(const std::string& history_file);
  ~LineReader();
  LineReader(const LineReader&) = delete;
  LineReader& operator=(const LineReader&) = delete;

  bool is_interactive() const { return editor_ != nullptr; }

  // Without its newline; nothing at the end of the input.
  std::optional<std::string> Read(const std::string& prompt);

 private:
  class Editor;
  std::unique_ptr<Editor> editor_;  // on a terminal
};

// $XDG_STATE_HOME/weir/chat_history, by default under ~/.local/state; its directory is made.  Empty when there is no
// home.
std::string DefaultHistoryFile();

}  // namespace weir::tools
