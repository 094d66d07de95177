#include "config/config.h"

#include <yaml-cpp/yaml.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <iostream>
#include <istream>
#include <memory>
#include <numeric>
#include <sstream>

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

}  // namespace

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
