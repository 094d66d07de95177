#!/usr/bin/env python3
"""Writes the golden checkpoints and their logits, from HuggingFace transformers and from the float64 oracle.

Set up once (several GB: the torch wheel brings CUDA libraries that are not used):
  python3 -m venv tools/goldens/.venv && tools/goldens/.venv/bin/pip install -r tools/goldens/requirements.txt
Example:
  tools/goldens/.venv/bin/python tools/goldens/make_goldens.py --out tests/worker/goldens

The format of the output is described in tests/worker/goldens/README.md.  The same command writes the same bytes for
everything but transformers' figures, which may differ in the last bits on another processor.
"""

import argparse
import hashlib
import json
import os
import sys
import tempfile
import time

import numpy as np

from cases import CASES
from checkpoint import Tensor, make_tensors, read_safetensors, token_ids, uniform, write_safetensors
from oracle import Oracle, generate

NEAR_TIE = 1e-3  # a lead of the best logit below this, or below the sensitivity of the arithmetic, may fall either way
PERTURBATION = 2.0**-22  # relative, of every linear layer's output: about what float32 arithmetic does


# ---- transformers --------------------------------------------------------------------------------------------------------
def load_transformers(case, tensors, dtype_name, folder):
    """transformers has no FP8 kernels for a CPU: FP8 weights are dequantised for it, in float32."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    config = {key: value for key, value in case.config.items() if key != "quantization_config"}
    plain = {name: Tensor(t.dequantised(), "F32") for name, t in tensors.items()}
    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump(config, file)
    write_safetensors(os.path.join(folder, "model.safetensors"), plain)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype_name), attn_implementation="eager", experts_implementation="eager"
    )
    return model.eval()


def transformers_logits(model, ids):
    import torch

    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].float().numpy()


def transformers_greedy(model, prompt, num_tokens):
    """Token by token with transformers' own cache."""
    import torch

    ids, cache, rest = [], None, torch.tensor([prompt])
    with torch.no_grad():
        for _ in range(num_tokens):
            out = model(rest, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            ids.append(int(out.logits[0, -1].argmax()))
            rest = torch.tensor([[ids[-1]]])
    return ids


# ---- one case ------------------------------------------------------------------------------------------------------------
def prompts_of(case):
    vocab = case.config["vocab_size"]
    if case.prompt_lengths is None:
        return [token_ids("tokens", case.num_tokens, vocab)]
    return [token_ids(f"prompt.{length}", length, vocab) for length in case.prompt_lengths]


def oracle_figures(case, tensors, prompts, arithmetic):
    """Per prompt (generated ids, leads, logits, mtp logits, margins)."""
    oracle = Oracle(case.config, tensors, arithmetic)
    figures = []
    for prompt in prompts:
        ids, leads = generate(oracle, prompt, case.max_tokens) if case.prompt_lengths else ([], [])
        logits, mtp, margins = oracle.run((prompt + ids)[: len(prompt) + max(len(ids) - 1, 0)], len(prompt))
        figures.append((ids, leads, logits, mtp, margins))
    return figures


class PerturbedOracle(Oracle):
    def linear(self, name, x):
        out = super().linear(name, x)
        return out * (1 + PERTURBATION * uniform(name, out.size).reshape(out.shape))


def sensitivity(case, tensors, prompts, arithmetic, rows):
    """How far the log-probabilities of the same rows move when every linear layer is off by a float32 rounding, rounding to
    bfloat16 or e4m3 and the choice of experts included: what correct float32 code can be held to."""
    oracle, moved = PerturbedOracle(case.config, tensors, arithmetic), []
    for prompt, (ids, _, logits, _, _) in zip(prompts, rows):
        moved.append(np.abs(log_softmax(oracle.run((prompt + ids)[: len(logits)], len(prompt))[0]) - log_softmax(logits)))
    per_row = np.concatenate(moved).max(axis=1)
    return {"median": float(np.median(per_row)), "p90": float(np.quantile(per_row, 0.9)), "max": float(per_row.max())}


def log_softmax(logits):
    logits = logits.astype(np.float64)
    logits = logits - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def difference(a, b):
    return float(np.abs(log_softmax(a) - log_softmax(b)).max())


def write_figures(folder, name, rows):
    """float32, or, where the name ends in bf16, the upper halves of float32 (the figures are bfloat16 already)."""
    values = np.concatenate(rows).astype("<f4")
    if name.endswith(".bf16"):
        values = (values.view("<u4") >> 16).astype("<u2")
    values.tofile(os.path.join(folder, name))


def near_ties(leads, sensitivity_of_rows):
    limit = max(NEAR_TIE, sensitivity_of_rows["max"])
    return [step for step, lead in enumerate(leads) if lead < limit]


def make_case(name, case, out):
    folder = os.path.join(out, name)
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, "model.safetensors")
    write_safetensors(path, make_tensors(case.config, case.dtype, case.bias_offset))
    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump(case.config, file, indent=1)
        file.write("\n")
    tensors, prompts = read_safetensors(path), prompts_of(case)
    digest = hashlib.sha256(open(path, "rb").read()).hexdigest()
    if case.weights_from:
        os.remove(path)

    arithmetics = ["exact"] + (["fp8"] if case.is_fp8 and not case.prompt_lengths else [])
    arithmetics += ["stored"] if case.dtype != "F32" else []
    figures = {a: oracle_figures(case, tensors, prompts, a) for a in arithmetics}
    summary = {
        "about": case.about,
        "vocab_size": case.config["vocab_size"],
        "weights_from": case.weights_from or name,
        "weights_sha256": digest,
        "weights": "F8_E4M3" if case.is_fp8 else case.dtype,
        "prompts": [],
        "files": {},
        "largest_logprob_difference": {},
        "sensitivity": {a: sensitivity(case, tensors, prompts, a, figures[a]) for a in arithmetics},
    }
    for arithmetic, rows in figures.items():
        write_figures(folder, arithmetic + ".f32", [r[2] for r in rows])
        write_figures(folder, arithmetic + "_margins.f32", [r[4] for r in rows])
        summary["files"][arithmetic] = {"logits": arithmetic + ".f32", "margins": arithmetic + "_margins.f32"}
        if arithmetic != "stored" and any(len(r[3]) for r in rows):
            write_figures(folder, arithmetic + "_mtp.f32", [r[3] for r in rows])
            summary["files"][arithmetic]["mtp_logits"] = arithmetic + "_mtp.f32"

    first_row = first_mtp_row = 0
    for index, prompt in enumerate(prompts):
        row_count = len(figures["exact"][index][2])
        entry = {"prompt_ids": prompt, "first_row": first_row, "row_count": row_count, "first_mtp_row": first_mtp_row}
        entry["generated_ids"] = {a: figures[a][index][0] for a in arithmetics}
        entry["leads"] = {a: [round(lead, 6) for lead in figures[a][index][1]] for a in arithmetics}
        entry["near_ties"] = {a: near_ties(figures[a][index][1], summary["sensitivity"][a]) for a in arithmetics}
        summary["prompts"].append(entry)
        first_row, first_mtp_row = first_row + row_count, first_mtp_row + row_count - 1

    for dtype_name, file_name in (("float32", "transformers.f32"), ("bfloat16", "transformers_bf16.bf16")):
        with tempfile.TemporaryDirectory() as temporary:
            model = load_transformers(case, tensors, dtype_name, temporary)
        logits, equal = [], True
        for prompt, (ids, _, exact, _, _) in zip(prompts, figures["exact"]):
            logits.append(transformers_logits(model, (prompt + ids)[: len(exact)]))
            if dtype_name == "float32" and ids:
                equal &= transformers_greedy(model, prompt, len(ids)) == ids
        write_figures(folder, file_name, logits)
        summary["files"][file_name.split(".")[0]] = {"logits": file_name}
        summary["largest_logprob_difference"]["exact, transformers " + dtype_name] = max(
            difference(a, row[2]) for a, row in zip(logits, figures["exact"])
        )
        if dtype_name == "float32" and case.prompt_lengths:
            summary["transformers_greedy_equals_exact"] = equal
    for arithmetic in arithmetics[1:]:
        same_rows = [  # along the same ids, so that only the arithmetic differs
            difference(a[2][: len(prompt)], b[2][: len(prompt)])
            for prompt, a, b in zip(prompts, figures[arithmetic], figures["exact"])
        ]
        summary["largest_logprob_difference"][f"exact, {arithmetic} (prompt rows)"] = max(same_rows)
    with open(os.path.join(folder, "case.json"), "w") as file:
        json.dump(summary, file, indent=None, separators=(",", ":"))
        file.write("\n")
    return summary


def versions():
    import tokenizers
    import torch
    import transformers

    return {
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
        "numpy": np.__version__,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="folder that gets one folder per case")
    parser.add_argument("--case", action="append", choices=list(CASES), help="only this case (may be repeated)")
    options = parser.parse_args()
    names = options.case or list(CASES)
    for number, name in enumerate(names, 1):
        start = time.time()
        summary = make_case(name, CASES[name], options.out)
        print(f"[{number}/{len(names)}] {name}  {time.time() - start:.0f} s", flush=True)
        for what, value in summary["largest_logprob_difference"].items():
            print(f"      {what}: {value:.1e}")
        for arithmetic, moved in summary["sensitivity"].items():
            print(f"      a float32 rounding moves {arithmetic} by", {k: float(f"{v:.1e}") for k, v in moved.items()})
        if "transformers_greedy_equals_exact" in summary:
            print(f"      greedy continuation of transformers equal: {summary['transformers_greedy_equals_exact']}")
            ties = sum(len(steps) for p in summary["prompts"] for steps in p["near_ties"].values())
            print(f"      near ties: {ties}")
    with open(os.path.join(options.out, "versions.json"), "w") as file:
        json.dump(versions(), file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main()
