#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <vector>

#include "tests/scenarios/interpreter.h"

// Each script of this folder is a test.  WEIR_REGENERATE=1 writes what the scheduler does into the scripts: read the
// difference with your own eyes before you commit it.

namespace weir::scheduler {
namespace {

std::filesystem::path Folder() { return std::filesystem::path(WEIR_SOURCE_DIR) / "tests" / "scenarios"; }

std::vector<std::string> Scripts() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(Folder())) {
    const bool is_script = entry.path().extension() == ".txt" && entry.path().stem() != "CMakeLists";
    if (is_script) names.push_back(entry.path().stem().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

// The script with every answer replaced by what the scheduler does.
std::string Replay(std::istream& script) {
  Interpreter interpreter;
  std::string replayed, answer;
  bool in_answer = false;
  for (std::string line; std::getline(script, line);) {
    if (line.empty()) in_answer = false;
    if (in_answer) continue;
    if (line == "----") {
      replayed += "----\n" + answer;
      answer.clear();
      in_answer = true;
      continue;
    }
    replayed += line + "\n";
    if (!line.empty() && line[0] != '#') answer += interpreter.Run(line);
  }
  if (!answer.empty()) replayed += "error: the last commands have no answer (----)\n";
  return replayed;
}

class Scenario : public testing::TestWithParam<std::string> {};

TEST_P(Scenario, GoesAsWritten) {
  const std::filesystem::path path = Folder() / (GetParam() + ".txt");
  std::ifstream file(path);
  std::stringstream written;
  written << file.rdbuf();
  const std::string replayed = Replay(written);
  EXPECT_EQ(replayed.find("error:"), std::string::npos) << replayed;
  const char* regenerate = std::getenv("WEIR_REGENERATE");
  if (regenerate != nullptr && std::string(regenerate) == "1") {
    std::ofstream(path) << replayed;
  } else {
    EXPECT_EQ(replayed, written.str()) << "WEIR_REGENERATE=1 writes the answers anew";
  }
}

INSTANTIATE_TEST_SUITE_P(Scripts, Scenario, testing::ValuesIn(Scripts()),
                         [](const testing::TestParamInfo<std::string>& script) { return script.param; });

}  // namespace
}  // namespace weir::scheduler
