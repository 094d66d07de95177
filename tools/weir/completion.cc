// weir completion: what a shell offers when Tab is pressed, from the commands as they are.

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "tools/weir/commands.h"

namespace weir::tools {
namespace {

constexpr const char* kExamples =
    "Examples:\n"
    "  source <(weir completion bash)\n"
    "  weir completion zsh > ~/.zfunc/_weir      in a directory of $fpath, before compinit";

// A command by its words behind `weir` ("keys create"), and what may follow it.
struct Entry {
  std::string path;
  std::vector<std::string> subcommands;
  std::vector<const CLI::Option*> options;
  std::string description;
};

bool IsFlag(const CLI::Option& option) { return option.get_items_expected_max() == 0; }

std::vector<std::string> Names(const CLI::Option& option) {
  std::vector<std::string> names;
  for (const std::string& name : option.get_lnames()) names.push_back("--" + name);
  for (const std::string& name : option.get_snames()) names.push_back("-" + name);
  return names;
}

void Collect(const CLI::App& app, const std::string& path, std::vector<Entry>& entries) {
  Entry entry{.path = path, .description = app.get_description()};
  for (const CLI::App* command : app.get_subcommands(nullptr)) entry.subcommands.push_back(command->get_name());
  for (const CLI::Option* option : app.get_options()) {
    if (!Names(*option).empty()) entry.options.push_back(option);
  }
  entries.push_back(std::move(entry));
  for (const CLI::App* command : app.get_subcommands(nullptr)) {
    Collect(*command, path.empty() ? command->get_name() : absl::StrCat(path, " ", command->get_name()), entries);
  }
}

std::vector<std::string> Words(const Entry& entry) {
  std::vector<std::string> words = entry.subcommands;
  for (const CLI::Option* option : entry.options) {
    for (const std::string& name : Names(*option)) words.push_back(name);
  }
  return words;
}

// The words typed so far, without options and their values, name the command; behind an option that takes a value, file
// names are offered.
std::string Bash(const std::vector<Entry>& entries) {
  std::vector<std::string> paths, words, with_value;
  for (const Entry& entry : entries) {
    if (!entry.path.empty()) paths.push_back(absl::StrCat("      '", entry.path, "') path=$next ;;\n"));
    words.push_back(absl::StrCat("    '", entry.path, "') words='", absl::StrJoin(Words(entry), " "), "' ;;\n"));
    for (const CLI::Option* option : entry.options) {
      if (IsFlag(*option)) continue;
      for (const std::string& name : Names(*option))
        with_value.push_back(absl::StrCat("'", entry.path, " ", name, "'"));
    }
  }
  return absl::StrCat(
      "# weir completion for bash: source <(weir completion bash)\n"
      "_weir() {\n"
      "  local path='' next words i\n"
      "  for ((i = 1; i < COMP_CWORD; i++)); do\n"
      "    next=\"${path:+$path }${COMP_WORDS[i]}\"\n"
      "    case \"$next\" in\n",
      absl::StrJoin(paths, ""),
      "    esac\n"
      "  done\n"
      "  case \"$path ${COMP_WORDS[COMP_CWORD-1]}\" in\n    ",
      absl::StrJoin(with_value, "|"),
      ")\n"
      "      COMPREPLY=($(compgen -f -- \"${COMP_WORDS[COMP_CWORD]}\"))\n"
      "      return ;;\n"
      "  esac\n"
      "  case \"$path\" in\n",
      absl::StrJoin(words, ""),
      "  esac\n"
      "  COMPREPLY=($(compgen -W \"$words\" -- \"${COMP_WORDS[COMP_CWORD]}\"))\n"
      "}\n"
      "complete -o filenames -F _weir weir\n");
}

// Inside single quotes of a zsh _arguments specification.
std::string ZshText(const std::string& text) {
  std::string escaped;
  for (const char c : text.substr(0, text.find('\n'))) {
    if (c == '\'') {
      escaped += "'\\''";
    } else if (c == '[' || c == ']' || c == ':' || c == '\\') {
      escaped += absl::StrCat("\\", std::string(1, c));
    } else {
      escaped.push_back(c);
    }
  }
  return escaped;
}

std::string ZshArguments(const Entry& entry) {
  std::string text;
  for (const CLI::Option* option : entry.options) {
    for (const std::string& name : Names(*option)) {
      absl::StrAppend(&text, "        '", name, IsFlag(*option) ? "" : "=", "[", ZshText(option->get_description()),
                      "]", IsFlag(*option) ? "" : ":value:_files", "' \\\n");
    }
  }
  return text;
}

std::string Zsh(const std::vector<Entry>& entries) {
  std::string cases;
  for (const Entry& entry : entries) {
    absl::StrAppend(&cases, "    '", entry.path, "')\n");
    if (!entry.subcommands.empty()) {
      absl::StrAppend(&cases, "      compadd -- ", absl::StrJoin(entry.subcommands, " "), "\n");
    }
    absl::StrAppend(&cases, "      _arguments \\\n", ZshArguments(entry), "        ",
                    entry.subcommands.empty() ? "'*:file:_files'" : "'*: :'", "\n      ;;\n");
  }
  std::vector<std::string> paths;
  for (const Entry& entry : entries) {
    if (!entry.path.empty()) paths.push_back(absl::StrCat("'", entry.path, "'"));
  }
  return absl::StrCat(
      "#compdef weir\n"
      "# weir completion for zsh: put it as _weir into a directory of $fpath\n"
      "_weir() {\n"
      "  local path_='' next i\n"
      "  local -a known=(",
      absl::StrJoin(paths, " "),
      ")\n"
      "  for ((i = 2; i < CURRENT; i++)); do\n"
      "    next=\"${path_:+$path_ }${words[i]}\"\n"
      "    (( ${known[(Ie)$next]} )) && path_=$next\n"
      "  done\n"
      "  case \"$path_\" in\n",
      cases,
      "  esac\n"
      "}\n"
      "if [[ ${funcstack[1]} == _weir ]]; then _weir \"$@\"; else compdef _weir weir; fi\n");
}

}  // namespace

void AddCompletion(CLI::App& app) {
  auto shell = std::make_shared<std::string>();
  CLI::App* command = app.add_subcommand("completion", "Print what makes a shell complete these commands");
  command->footer(kExamples);
  command->add_option("shell", *shell, "bash or zsh")->required()->check(CLI::IsMember({"bash", "zsh"}));
  command->callback([shell, &app] {
    std::vector<Entry> entries;
    Collect(app, "", entries);
    std::printf("%s", (*shell == "bash" ? Bash(entries) : Zsh(entries)).c_str());
  });
}

}  // namespace weir::tools
