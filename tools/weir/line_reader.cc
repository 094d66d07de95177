#include "tools/weir/line_reader.h"

#include <histedit.h>
#include <sys/stat.h>
#include <unistd.h>

#include <clocale>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <iostream>

namespace weir::tools {
namespace {

constexpr int kHistoryLines = 1000;

// So that one key deletes one Chinese character, also where no locale is set.
void UseUtf8() {
  std::setlocale(LC_CTYPE, "");
  if (MB_CUR_MAX < 4) std::setlocale(LC_CTYPE, "C.UTF-8");
}

}  // namespace

class LineReader::Editor {
 public:
  explicit Editor(std::string history_file) : history_file_(std::move(history_file)) {
    UseUtf8();
    history_ = history_init();
    HistEvent event;
    history(history_, &event, H_SETSIZE, kHistoryLines);
    history(history_, &event, H_SETUNIQUE, 1);
    if (!history_file_.empty()) history(history_, &event, H_LOAD, history_file_.c_str());
    editor_ = el_init("weir", stdin, stdout, stderr);
    el_set(editor_, EL_CLIENTDATA, this);
    el_set(editor_, EL_PROMPT, &Editor::Prompt);
    el_set(editor_, EL_EDITOR, "emacs");
    el_set(editor_, EL_HIST, history, history_);
    el_set(editor_, EL_SIGNAL, 0);
    // While a line is edited, Ctrl-C is a key like others.
    el_set(editor_, EL_SETTY, "-d", "-isig", nullptr);
    el_set(editor_, EL_BIND, "^C", "em-kill-line", nullptr);
    el_set(editor_, EL_BIND, "^R", "em-inc-search-prev", nullptr);
  }
  ~Editor() {
    el_end(editor_);
    history_end(history_);
  }
  Editor(const Editor&) = delete;
  Editor& operator=(const Editor&) = delete;

  std::optional<std::string> Read(const std::string& prompt) {
    prompt_ = prompt;
    int length = 0;
    const char* text = el_gets(editor_, &length);
    if (text == nullptr || length <= 0) {
      std::printf("\n");
      return std::nullopt;
    }
    std::string line(text, static_cast<size_t>(length));
    if (line.back() == '\n') line.pop_back();
    if (line.find_first_not_of(' ') != std::string::npos) Remember(line);
    return line;
  }

 private:
  static char* Prompt(EditLine* editor) {
    Editor* self = nullptr;
    el_get(editor, EL_CLIENTDATA, &self);
    return self->prompt_.data();
  }

  void Remember(const std::string& line) {
    HistEvent event;
    history(history_, &event, H_ENTER, line.c_str());
    if (history_file_.empty()) return;
    const mode_t old = umask(0077);  // what people ask is theirs
    history(history_, &event, H_SAVE, history_file_.c_str());
    umask(old);
  }

  const std::string history_file_;
  std::string prompt_;
  History* history_ = nullptr;
  EditLine* editor_ = nullptr;
};

LineReader::LineReader(const std::string& history_file) {
  if (isatty(STDIN_FILENO) == 1 && isatty(STDOUT_FILENO) == 1) editor_ = std::make_unique<Editor>(history_file);
}

LineReader::~LineReader() = default;

std::optional<std::string> LineReader::Read(const std::string& prompt) {
  if (editor_) return editor_->Read(prompt);
  std::string line;
  if (!std::getline(std::cin, line)) return std::nullopt;
  return line;
}

std::string DefaultHistoryFile() {
  const char* state = std::getenv("XDG_STATE_HOME");
  const char* home = std::getenv("HOME");
  if ((state == nullptr || *state == '\0') && home == nullptr) return "";
  const std::filesystem::path directory =
      (state != nullptr && *state != '\0' ? std::filesystem::path(state)
                                          : std::filesystem::path(home) / ".local" / "state") /
      "weir";
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  return error ? "" : (directory / "chat_history").string();
}

}  // namespace weir::tools
