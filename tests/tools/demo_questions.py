#!/usr/bin/env python3
"""Asks the demo model fixed questions through `weir generate`, greedily, and compares the answers token by token.

Examples:
  tests/tools/demo_questions.py --weir build/release/bin/weir --model tools/demo_model/weights
  tests/tools/demo_questions.py --weir build/release/bin/weir --options "--backend reference" --limit 5
Python's standard library only.  Exit code 1 when an answer differs.
"""

import argparse
import json
import os
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))


def ask(weir, model, options, questions):
    longest = max(len(question["answer_ids"]) for question in questions)
    command = [weir, "generate", "--model", model, "--max-tokens", str(longest), "--json", *options.split()]
    for question in questions:
        command += ["--prompt-ids", ",".join(map(str, question["prompt_ids"]))]
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if run.returncode != 0:
        sys.exit(f"{' '.join(command[:6])} ... failed with exit code {run.returncode}:\n{run.stderr}")
    reply = json.loads(run.stdout)
    return [answer["generated_ids"] for answer in reply.get("answers", [reply])]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weir", default="build/release/bin/weir")
    parser.add_argument("--model", default=os.path.join(HERE, "../../tools/demo_model/weights"))
    parser.add_argument("--questions", default=os.path.join(HERE, "demo_questions.json"))
    parser.add_argument("--options", default="", help="more options for `weir generate`, e.g. '--tp 2'")
    parser.add_argument("--limit", type=int, help="only the first so many")
    options = parser.parse_args()
    with open(options.questions, encoding="utf-8") as file:
        questions = json.load(file)["questions"][: options.limit]
    differing = 0
    for question, got in zip(questions, ask(options.weir, options.model, options.options, questions)):
        if got != question["answer_ids"]:
            differing += 1
            at = next((i for i, (a, b) in enumerate(zip(got, question["answer_ids"])) if a != b), min(len(got), len(question["answer_ids"])))
            print(f"{question['question']!r}: expected {question['answer']!r}; token {at} differs\n  expected {question['answer_ids']}\n  got      {got}")
    print(f"{len(questions) - differing} of {len(questions)} answers as recorded")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
