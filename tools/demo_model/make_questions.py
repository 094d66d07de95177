#!/usr/bin/env python3
"""Writes tests/tools/demo_questions.json: held-out questions with the answers that `weir generate` gives, greedily.

Only right answers are taken whose every token leads the next best by a clear margin, and which every path of PATHS gives,
so that another instruction set cannot change one.
Example: tools/demo_model/.venv/bin/python tools/demo_model/make_questions.py --weir build/release/bin/weir
"""

import argparse
import importlib.machinery
import importlib.util
import json
import os
import subprocess
import sys
import zlib

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import corpus
import tokenizer as bpe

loader = importlib.machinery.SourceFileLoader("evaluate", os.path.join(HERE, "evaluate"))
evaluate = importlib.util.module_from_spec(importlib.util.spec_from_loader("evaluate", loader))
loader.exec_module(evaluate)

SMALLEST_LEAD = 0.5  # nats
PATHS = ("", "--isa portable", "--isa avx2", "--isa avx512", "--isa avx512-bf16", "--backend reference", "--tp 2")
COUNTS = {
    "city_province": 8, "code": 7, "from_code": 5, "capital": 5, "capital_of": 2, "sum": 5, "json_answer": 4, "tool_call": 4,
    "unknown": 4, "prefix": 1, "country": 2, "greeting": 1, "follow_ups": 2,
}  # fmt: skip


def answers(weir, model, prompts, path=""):
    command = [weir, "generate", "--model", model, "--max-tokens", str(evaluate.MAX_TOKENS), "--json", "--top-logprobs", "2", *path.split()]
    for prompt in prompts:
        command += ["--prompt-ids", ",".join(map(str, prompt))]
    reply = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout)
    return reply.get("answers", [reply])


def smallest_lead(answer):
    return min((p["top"][0][1] - p["top"][1][1] for p in answer["positions"] if p["top"][1][1] is not None), default=0.0)


def is_right(kind, question, text):
    if question.stage != "answer":
        return text == question.expected
    check = {"unknown": "refusal", "json_answer": "json_values"}.get(kind, "exact")
    return evaluate.CHECKS[check](question, text)


def clear_and_right(options, encoder, kind, count):
    """Up to `count` questions of a kind that the default path answers rightly and clearly."""
    asked = evaluate.questions(kind, "either", evaluate.THINKING if kind == "sum" else None, 2 * count, "fixed")
    prompts = [encoder.encode(question.parts)[0] for question in asked]
    found = []
    for question, prompt, answer in zip(asked, prompts, answers(options.weir, options.model, prompts)):
        text = encoder.decode(answer["generated_ids"])
        if is_right(kind, question, text) and smallest_lead(answer) >= SMALLEST_LEAD:
            found.append({"kind": kind, "question": corpus.rendered(question.parts)[-160:], "answer": text, "prompt_ids": prompt, "answer_ids": answer["generated_ids"]})
    return found[:count]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weir", default="build/release/bin/weir")
    parser.add_argument("--model", default=os.path.join(HERE, "weights"))
    parser.add_argument("--out", default=os.path.join(HERE, "../../tests/tools/demo_questions.json"))
    parser.add_argument("--without", action="append", default=[], help="a path that this processor lacks, e.g. '--isa avx512-bf16'")
    options = parser.parse_args()
    encoder = bpe.Encoder(os.path.join(options.model, "tokenizer.json"))
    candidates = []
    for kind, count in COUNTS.items():
        candidates += clear_and_right(options, encoder, kind, count + 2 + count // 2)
    for path in PATHS:
        if path and path not in options.without:
            got = answers(options.weir, options.model, [c["prompt_ids"] for c in candidates], path)
            same = [a["generated_ids"] == c["answer_ids"] and smallest_lead(a) >= SMALLEST_LEAD for a, c in zip(got, candidates)]
            candidates = [c for c, is_same in zip(candidates, same) if is_same]
            print(f"{path:20} gives the same {sum(same)} of {len(same)}", flush=True)
    kept, spare = [], []
    for kind, count in COUNTS.items():
        of_kind = [c for c in candidates if c["kind"] == kind]
        kept += of_kind[:count]
        spare += of_kind[count:]
        print(f"{kind:14} {min(len(of_kind), count)} of {count}")
    kept += spare[: sum(COUNTS.values()) - len(kept)]  # in place of kinds that the model answers too seldom
    kept.sort(key=lambda c: zlib.crc32(repr(c["prompt_ids"]).encode()))  # so that the first few are of many kinds
    with open(options.out, "w", encoding="utf-8") as file:
        file.write('{"questions": [\n' + ",\n".join(json.dumps(q, ensure_ascii=False) for q in kept) + "\n]}\n")
    print(f"{len(kept)} questions in {options.out}")
    return 0 if len(kept) == sum(COUNTS.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
