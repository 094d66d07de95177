#!/usr/bin/env python3
"""Writes tests/tools/demo_questions.json: held-out questions with the answers that `weir generate` gives, greedily.

Only right answers are taken whose every token leads the next best by a clear margin, so that another instruction set
cannot change one.
Example: tools/demo_model/.venv/bin/python tools/demo_model/make_questions.py --weir build/release/bin/weir
"""

import argparse
import importlib.machinery
import importlib.util
import json
import os
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import corpus
import tokenizer as bpe

loader = importlib.machinery.SourceFileLoader("evaluate", os.path.join(HERE, "evaluate"))
evaluate = importlib.util.module_from_spec(importlib.util.spec_from_loader("evaluate", loader))
loader.exec_module(evaluate)

SMALLEST_LEAD = 0.5  # nats
COUNTS = {
    "city_province": 8, "code": 7, "from_code": 5, "capital": 5, "capital_of": 2, "sum": 5, "json_answer": 4, "tool_call": 4,
    "unknown": 3, "prefix": 1, "country": 2, "greeting": 1, "short_list": 1, "long_list": 2,
}  # fmt: skip


def answers(weir, model, prompts):
    command = [weir, "generate", "--model", model, "--max-tokens", str(evaluate.MAX_TOKENS), "--json", "--top-logprobs", "2"]
    for prompt in prompts:
        command += ["--prompt-ids", ",".join(map(str, prompt))]
    reply = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout)
    return reply.get("answers", [reply])


def smallest_lead(answer):
    return min((p["top"][0][1] - p["top"][1][1] for p in answer["positions"] if p["top"][1][1] is not None), default=0.0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weir", default="build/release/bin/weir")
    parser.add_argument("--model", default=os.path.join(HERE, "weights"))
    parser.add_argument("--out", default=os.path.join(HERE, "../../tests/tools/demo_questions.json"))
    options = parser.parse_args()
    encoder, kept = bpe.Encoder(os.path.join(options.model, "tokenizer.json")), []
    for kind, count in COUNTS.items():
        dialects = (("deepseek_r1", True), ("deepseek_v31", True)) if kind == "sum" else None
        asked = evaluate.questions(kind, dialects, 4 * count + 4, "fixed")
        prompts = [encoder.encode(question.parts)[0] for question in asked]
        taken = 0
        for question, prompt, answer in zip(asked, prompts, answers(options.weir, options.model, prompts)):
            text = encoder.decode(answer["generated_ids"])
            if taken < count and question.check(text) and smallest_lead(answer) >= SMALLEST_LEAD:
                taken += 1
                kept.append({"question": corpus.rendered(question.parts)[-160:], "answer": text, "prompt_ids": prompt, "answer_ids": answer["generated_ids"]})
        print(f"{kind:14} {taken} of {count}", flush=True)
    with open(options.out, "w", encoding="utf-8") as file:
        file.write('{"questions": [\n' + ",\n".join(json.dumps(q, ensure_ascii=False) for q in kept) + "\n]}\n")
    print(f"{len(kept)} questions in {options.out}")
    return 0 if len(kept) == sum(COUNTS.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
