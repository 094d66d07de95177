#!/usr/bin/env python3
"""Holds the export against transformers: log-probabilities of held-out conversations from `weir generate` on the FP8
weights, and from transformers in float32 on the same weights dequantised (it has no FP8 kernels for a CPU).

Example: tools/demo_model/.venv/bin/python tools/demo_model/verify_export.py --weir build/release/bin/weir
Two rows are printed: Weir with its weights widened to float32 (must agree to 5e-3) and Weir as it serves them, inputs
quantised (the difference is FP8's).  Exit code 1 when the first does not agree.
"""

import argparse
import json
import math
import os
import random
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import corpus
import tokenizer as bpe

TOLERANCE = 5e-3


def transformers_logprobs(folder, prompts):
    import torch
    import transformers
    from export import spread
    from safetensors.torch import load_file, save_file

    stored = load_file(os.path.join(folder, "model.safetensors"))
    plain = {name: t.float() for name, t in stored.items() if not name.endswith("_scale_inv")}
    for name in plain:
        if name + "_scale_inv" in stored:
            plain[name] = plain[name] * spread(stored[name + "_scale_inv"], plain[name].shape)
    with open(os.path.join(folder, "config.json")) as file:
        config = {key: value for key, value in json.load(file).items() if key != "quantization_config"}
    with tempfile.TemporaryDirectory() as temporary:
        save_file(plain, os.path.join(temporary, "model.safetensors"), metadata={"format": "pt"})
        with open(os.path.join(temporary, "config.json"), "w") as file:
            json.dump(config, file)
        transformers.logging.set_verbosity_error()
        model = transformers.AutoModelForCausalLM.from_pretrained(
            temporary, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
        )
    with torch.no_grad():
        return [model(torch.tensor([ids])).logits[0].log_softmax(-1) for ids in prompts]


def weir_positions(weir, folder, prompts, dtype):
    command = [weir, "generate", "--model", folder, "--max-tokens", "0", "--echo", "--top-logprobs", "20", "--json", "--weight-dtype", dtype]
    for ids in prompts:
        command += ["--prompt-ids", ",".join(map(str, ids))]
    reply = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return [answer["positions"] for answer in reply.get("answers", [reply])]


def differences(reference, positions, targets):
    """Over the positions that the model was taught to write: how far the log-probability of the token that follows moved,
    and how often the first choice is the same."""
    moved, same = [], []
    for logprobs, rows, wanted in zip(reference, positions, targets):
        for row, position, is_target in zip(logprobs, rows, wanted[1:]):
            if not is_target:
                continue
            moved.append(abs(float(row[position["id"]]) - position["logprob"]))
            same.append(int(row.argmax()) == position["top"][0][0])
    moved.sort()
    return {"median": moved[len(moved) // 2], "largest": moved[-1], "same first choice": sum(same) / len(same), "positions": len(moved)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weir", default="build/release/bin/weir")
    parser.add_argument("--model", default=os.path.join(HERE, "weights"))
    parser.add_argument("--conversations", type=int, default=40)
    parser.add_argument("--json", help="write the figures here")
    options = parser.parse_args()
    encoder = bpe.Encoder(os.path.join(options.model, "tokenizer.json"))
    sampler = corpus.Sampler(corpus.World(), random.Random("verify"), held_out="either")
    conversations = [sampler.conversation() for _ in range(options.conversations - 1)] + [sampler.long_list()]
    encoded = [encoder.encode(corpus.segments(c, *sampler.dialect(c))) for c in conversations]
    prompts, targets = [ids for ids, _ in encoded], [wanted for _, wanted in encoded]
    reference = transformers_logprobs(options.model, prompts)
    worst, written = math.inf, {}
    for dtype in ("f32", "auto"):
        figures = differences(reference, weir_positions(options.weir, options.model, prompts, dtype), targets)
        written[dtype] = figures
        worst = figures["largest"] if dtype == "f32" else worst
        print(f"weir --weight-dtype {dtype:4} against transformers: " + ", ".join(f"{k} {v:.3g}" for k, v in figures.items()))
    if options.json:
        with open(options.json, "w") as file:
            json.dump(written, file, indent=1)
    if worst > TOLERANCE:
        print(f"float32 differs by more than {TOLERANCE}")
    return 1 if worst > TOLERANCE else 0


if __name__ == "__main__":
    sys.exit(main())
