#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace CLI {
class App;
class ParseError;
}  // namespace CLI

// One YAML file a process, under its flags.
//
// A flag --max-num-seqs is the key max_num_seqs of the file; a flag given on the command line wins.  A flag that may be
// repeated is a list.  An unknown key is an error that names the nearest known one.

namespace weir::config {

// Adds --config FILE and --print-config to an application that has all its options already.  --print-config writes the
// configuration that would be in force, as YAML with a comment a key, to standard output, and exits 0.
void AddConfigOptions(CLI::App& app);

// Ends main() after `error`, thrown by app.parse(argc, argv): prints what was asked for (help, version, configuration),
// or to standard error what is wrong with the arguments.  A misspelt option or command is named before anything that is
// missing because of it.  Returns the exit code, 0 or 2.
int Exit(const CLI::App& app, const CLI::ParseError& error, int argc, const char* const* argv);

// The entry of `known` with the smallest edit distance to `word`; empty when nothing is near (more than a third of it
// differs).
std::string Nearest(std::string_view word, const std::vector<std::string>& known);

}  // namespace weir::config
