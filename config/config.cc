#include "config/config.h"

#include <yaml-cpp/yaml.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cctype>
#include <iostream>
#include <istream>
#include <memory>
#include <numeric>
#include <sstream>
#include <utility>

namespace weir::config {
namespace {

// Options that configure the configuration, and those that only print something.
bool IsKey(const CLI::Option& option) {
  const std::string name = option.get_name();
  return option.get_configurable() && name.starts_with("--") && name != "--help" && name != "--config" &&
         name != "--print-config" && name != "--version";
}

std::string KeyOf(const CLI::Option& option) {
  std::string key = option.get_name().substr(2);
  std::replace(key.begin(), key.end(), '-', '_');
  return key;
}

std::vector<std::string> KeysOf(const CLI::App& app) {
  std::vector<std::string> keys;
  for (const CLI::Option* option : app.get_options()) {
    if (IsKey(*option)) keys.push_back(KeyOf(*option));
  }
  return keys;
}

std::string Scalar(const YAML::Node& node, const std::string& key) {
  if (!node.IsScalar())
    throw CLI::ConfigError("configuration key '" + key + "': a single value or a list of them is expected");
  return node.Scalar();
}

// A value as YAML: quoted when plain text would be read as something else.
std::string Quoted(const std::string& value) {
  YAML::Emitter out;
  out << value;
  return out.c_str();
}

class YamlFormat : public CLI::Config {
 public:
  explicit YamlFormat(const CLI::App* app) : app_(app) {}

  std::vector<CLI::ConfigItem> from_config(std::istream& input) const override {
    YAML::Node root;
    try {
      root = YAML::Load(input);
    } catch (const YAML::Exception& error) {
      throw CLI::ConfigError(std::string("the configuration file is not YAML: ") + error.what());
    }
    std::vector<CLI::ConfigItem> entries;
    if (root.IsNull()) return entries;
    if (!root.IsMap()) throw CLI::ConfigError("the configuration file must be a map of keys to values");
    const std::vector<std::string> known = KeysOf(*app_);
    for (const auto& entry : root) entries.push_back(Item(entry.first.Scalar(), entry.second, known));
    return entries;
  }

  std::string to_config(const CLI::App* app, bool /*default_also*/, bool /*write_description*/,
                        std::string /*prefix*/) const override {
    std::ostringstream out;
    for (const CLI::Option* option : app->get_options()) {
      if (!IsKey(*option)) continue;
      out << "# " << option->get_description() << "\n" << KeyOf(*option) << ": " << ValueOf(*option) << "\n";
    }
    return out.str();
  }

 private:
  static CLI::ConfigItem Item(const std::string& key, const YAML::Node& value, const std::vector<std::string>& known) {
    if (std::find(known.begin(), known.end(), key) == known.end()) {
      const std::string nearest = Nearest(key, known);
      throw CLI::ConfigError(
          "unknown configuration key '" + key + "'" +
          (nearest.empty() ? "; --print-config shows the known ones" : "; did you mean '" + nearest + "'?"));
    }
    CLI::ConfigItem item;
    item.name = key;
    std::replace(item.name.begin(), item.name.end(), '_', '-');
    if (value.IsSequence()) {
      for (const auto& element : value) item.inputs.push_back(Scalar(element, key));
    } else if (!value.IsNull()) {
      item.inputs.push_back(Scalar(value, key));
    }
    return item;
  }

  static std::string ValueOf(const CLI::Option& option) {
    const bool is_list = option.get_items_expected_max() > 1;
    if (option.count() == 0) {
      const std::string text = option.get_default_str();
      if (is_list) return text.empty() ? "[]" : text;
      if (option.get_items_expected_max() == 0) return "false";
      return Quoted(text);
    }
    if (option.get_items_expected_max() == 0) return "true";
    const std::vector<std::string>& results = option.results();
    if (!is_list) return Quoted(results.back());
    std::string list = "[";
    for (const std::string& value : results) list += (list.size() > 1 ? ", " : "") + Quoted(value);
    return list + "]";
  }

  const CLI::App* app_;
};

// Walks the arguments as the parser does, far enough to see which words it cannot know.
class ArgumentWalk {
 public:
  ArgumentWalk(const CLI::App& app, int argc, const char* const* argv)
      : app_(&app), name_(std::string(argv[0]).substr(std::string(argv[0]).rfind('/') + 1)) {
    for (int i = 1; i < argc && unknown_.empty() && argv[i] != std::string("--"); ++i) Take(argv[i]);
  }

  const std::string& name() const { return name_; }        // program and commands: "weir up"
  const std::string& unknown() const { return unknown_; }  // for people; empty: every word is known

 private:
  void Take(const std::string& word) {
    const bool is_value = std::exchange(expects_value_, false);
    if (is_value) return;
    if (word.size() > 1 && word.front() == '-' && std::isdigit(static_cast<unsigned char>(word[1])) == 0) {
      TakeOption(word);
    } else if (!app_->get_subcommands(nullptr).empty()) {
      TakeCommand(word);
    }
  }

  void TakeOption(const std::string& word) {
    const std::string name = word.substr(0, word.starts_with("--") ? word.find('=') : 2);
    const CLI::Option* option = app_->get_option_no_throw(name);
    if (option != nullptr) {
      expects_value_ = option->get_items_expected_max() > 0 && name == word;
      return;
    }
    std::vector<std::string> known;
    for (const CLI::Option* candidate : app_->get_options()) {
      for (const std::string& long_name : candidate->get_lnames()) known.push_back("--" + long_name);
    }
    Reject("option", name, known);
  }

  void TakeCommand(const std::string& word) {
    std::vector<std::string> known;
    for (const CLI::App* command : app_->get_subcommands(nullptr)) {
      if (command->get_name() == word) {
        app_ = command;
        name_ += " " + word;
        return;
      }
      known.push_back(command->get_name());
    }
    Reject("command", word, known);
  }

  void Reject(const char* kind, const std::string& word, const std::vector<std::string>& known) {
    const std::string nearest = Nearest(word, known);
    unknown_ = std::string("unknown ") + kind + " '" + word + "'" +
               (nearest.empty() ? "" : "; did you mean '" + nearest + "'?");
  }

  const CLI::App* app_;
  std::string name_;
  std::string unknown_;
  bool expects_value_ = false;
};

}  // namespace

int Exit(const CLI::App& app, const CLI::ParseError& error, int argc, const char* const* argv) {
  if (error.get_exit_code() == static_cast<int>(CLI::ExitCodes::Success)) return app.exit(error);
  const ArgumentWalk walk(app, argc, argv);
  std::cerr << walk.name() << ": " << (walk.unknown().empty() ? error.what() : walk.unknown()) << "\n"
            << "`" << walk.name() << " --help` tells what there is.\n";
  return 2;
}

void AddConfigOptions(CLI::App& app) {
  for (CLI::Option* option : app.get_options()) {
    if (IsKey(*option) && option->get_default_str().empty()) option->capture_default_str();
  }
  app.config_formatter(std::make_shared<YamlFormat>(&app));
  app.set_config("--config", "", "YAML file with these options; flags win over it");
  app.add_flag_callback(
         "--print-config",
         [&app] {
           std::cout << app.config_to_str(/*default_also=*/true, /*write_description=*/true);
           throw CLI::Success();
         },
         "print the configuration that would be in force, and exit")
      ->configurable(false)
      ->trigger_on_parse(false);
}

std::string Nearest(std::string_view word, const std::vector<std::string>& known) {
  std::string nearest;
  size_t nearest_distance = std::max<size_t>(2, word.size() / 3) + 1;
  for (const std::string& candidate : known) {
    std::vector<size_t> row(candidate.size() + 1);  // edit distance, one row at a time
    std::iota(row.begin(), row.end(), size_t{0});
    for (size_t i = 1; i <= word.size(); ++i) {
      size_t diagonal = std::exchange(row[0], i);
      for (size_t j = 1; j <= candidate.size(); ++j) {
        const size_t change = diagonal + (word[i - 1] == candidate[j - 1] ? 0 : 1);
        diagonal = std::exchange(row[j], std::min({row[j] + 1, row[j - 1] + 1, change}));
      }
    }
    if (row.back() < nearest_distance) {
      nearest_distance = row.back();
      nearest = candidate;
    }
  }
  return nearest;
}

}  // namespace weir::config
