#!/usr/bin/env python3
"""Holds `weir generate` against the golden checkpoints: log-probabilities and greedy continuations of every case whose
weights are here.

Examples:
  tests/worker/goldens/check.py --weir build/release/bin/weir
  tests/worker/goldens/check.py --weir build/release/bin/weir --case v3_odd --options "--backend reference"
Weights widened to float32 must agree with the float64 oracle within 1e-4 in every log-probability, and with transformers
within 1e-4 too, and continuations must be equal up to the first recorded near tie.  With the weights as stored one input
that rounds the other way to e4m3 or bfloat16, or one other expert, moves its row and, through attention, every later one:
the median and the 90th percentile of the rows are held to BOUNDS, measured on the backends that there are.
Python's standard library only; exit code 1 on a miss.
"""

import argparse
import array
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
TOLERANCE = 1e-4  # of float32 arithmetic
# Of arithmetic that rounds, by the weights: median and 90th percentile of the rows' errors, and the lead of the best logit
# below which a greedy step may differ.  Wrong formulas move the median by more than 1.
BOUNDS = {"BF16": (0.06, 0.2, 0.3), "F8_E4M3": (0.3, 0.5, 1.0)}
# (weights as, the oracle's arithmetic, options of weir generate)
MODES = [
    ("float32", "exact", "--weight-dtype f32 --cache-dtype f32"),
    ("as stored", "stored", "--weight-dtype auto"),
]


def floats(path, width):
    values = array.array("f", open(path, "rb").read())
    if sys.byteorder == "big":
        values.byteswap()
    return [values[i : i + width] for i in range(0, len(values), width)]


def log_softmax(row):
    top = max(row)
    total = top + math.log(sum(math.exp(value - top) for value in row))
    return [value - total for value in row]


def generate(weir, model, options, prompts, max_tokens):
    command = [weir, "generate", "--model", model, "--max-tokens", str(max_tokens), "--echo", "--top-logprobs", "20", "--json", "--ignore-eos", *options]
    for ids in prompts:
        command += ["--prompt-ids", ",".join(map(str, ids))]
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if run.returncode != 0:
        sys.exit(f"{' '.join(command[:8])} ... failed with exit code {run.returncode}:\n{run.stderr}")
    reply = json.loads(run.stdout)
    return reply.get("answers", [reply])


def row_error(expected, position):
    """The largest difference over the reported tokens."""
    reported = [[position["id"], position["logprob"]], *position["top"]]
    return max(abs(expected[token] - logprob) for token, logprob in reported)


def compare(case, folder, arithmetic, figures, answers):
    """(error of each row, steps that differ before a near tie)."""
    errors, wrong = [], []
    expected = floats(os.path.join(folder, case["files"][figures]["logits"]), case["vocab_size"])
    for number, (prompt, answer) in enumerate(zip(case["prompts"], answers)):
        ids, got = prompt["generated_ids"][arithmetic], answer["generated_ids"]
        same = next((i for i, (a, b) in enumerate(zip(ids, got)) if a != b), len(ids))
        may_differ = set(prompt["near_ties"][arithmetic])
        if arithmetic == "stored":
            may_differ |= {step for step, lead in enumerate(prompt["leads"][arithmetic]) if lead < BOUNDS[case["weights"]][2]}
        if same < len(ids) and same not in may_differ:
            wrong.append(f"prompt {number}, step {same}: expected {ids[same]}, got {got[same]}")
        known = min(prompt["row_count"], len(prompt["prompt_ids"]) + same, len(answer["positions"]))
        for row in range(known):
            errors.append(row_error(log_softmax(expected[prompt["first_row"] + row]), answer["positions"][row]))
    return sorted(errors), wrong


def check(name, options):
    folder = os.path.join(HERE, name)
    with open(os.path.join(folder, "case.json")) as file:
        case = json.load(file)
    if case["weights_from"] == "generator":
        return None
    missed = False
    with tempfile.TemporaryDirectory() as model:
        shutil.copy(os.path.join(folder, "config.json"), model)
        shutil.copy(os.path.join(HERE, case["weights_from"], "model.safetensors"), model)
        for label, arithmetic, arguments in MODES:
            if arithmetic not in case["files"]:
                continue
            prompts = [prompt["prompt_ids"] for prompt in case["prompts"]]
            max_tokens = max(len(prompt["generated_ids"][arithmetic]) for prompt in case["prompts"])
            answers = generate(options.weir, model, arguments.split() + options.options.split(), prompts, max_tokens)
            for figures in [arithmetic] + ["transformers"] * (arithmetic == "exact"):
                errors, wrong = compare(case, folder, arithmetic, figures, answers)
                median, p90 = errors[len(errors) // 2], errors[int(len(errors) * 0.9)]
                if arithmetic == "exact":
                    good = errors[-1] <= TOLERANCE
                else:
                    good = median <= BOUNDS[case["weights"]][0] and p90 <= BOUNDS[case["weights"]][1]
                missed |= not good or bool(wrong)
                verdict = "ok" if good and not wrong else "MISSED"
                print(f"{name:12} {label:9} against {figures:12}  median {median:.1e}  90% {p90:.1e}  largest {errors[-1]:.1e}  {verdict}")
                for line in wrong:
                    print("    " + line)
    return missed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weir", default="build/release/bin/weir")
    parser.add_argument("--case", action="append", help="only this case (may be repeated)")
    parser.add_argument("--options", default="", help="more options for `weir generate`, e.g. '--backend reference'")
    options = parser.parse_args()
    names = options.case or sorted(name for name in os.listdir(HERE) if os.path.isdir(os.path.join(HERE, name)))
    results = [result for result in (check(name, options) for name in names) if result is not None]
    print(f"{results.count(False)} of {len(results)} cases as recorded")
    return 1 if any(results) or not results else 0


if __name__ == "__main__":
    sys.exit(main())
