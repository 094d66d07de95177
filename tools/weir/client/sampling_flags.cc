#include "tools/weir/client/sampling_flags.h"

#include <CLI/CLI.hpp>

namespace weir::tools {

v1::SamplingParams SamplingFlags::Params() const {
  v1::SamplingParams params;
  if (temperature) params.set_temperature(*temperature);
  if (top_p) params.set_top_p(*top_p);
  if (min_p) params.set_min_p(*min_p);
  if (top_k) params.set_top_k(*top_k);
  if (seed) params.set_seed(*seed);
  return params;
}

v1::StopConditions SamplingFlags::Stop() const {
  v1::StopConditions conditions;
  if (max_tokens) conditions.set_max_tokens(*max_tokens);
  for (const std::string& text : stop) conditions.add_stop(text);
  return conditions;
}

void AddSamplingFlags(CLI::App& command, SamplingFlags& flags) {
  const std::string group = "Sampling";
  command.add_option("--max-tokens", flags.max_tokens, "of the answer; default: what the context leaves")->group(group);
  command.add_option("--temperature", flags.temperature, "0 to 2; 0 = greedy; default: the model's")->group(group);
  command.add_option("--top-p", flags.top_p, "keep the smallest set of at least this probability")->group(group);
  command.add_option("--top-k", flags.top_k, "keep the K most likely tokens")->group(group);
  command.add_option("--min-p", flags.min_p, "drop tokens below this part of the most likely one's probability")
      ->group(group);
  command.add_option("--seed", flags.seed, "the same seed and request give the same answer; default: drawn")
      ->group(group);
  command.add_option("--stop", flags.stop, "end the answer before this text; may be repeated")
      ->allow_extra_args(false)
      ->group(group);
}

}  // namespace weir::tools
