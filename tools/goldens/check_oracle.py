#!/usr/bin/env python3
"""Checks the generator and the float64 oracle against figures of an independent implementation.

The figures are the first 16 hex digits of the sha256 of each case's model.safetensors, the first six logits of the last
token and, where there is an MTP layer, its first six logits for the last pair of tokens; the V3 figures agree with a third
implementation (llama.cpp on float32 weights) to 3e-6.

Example: tools/goldens/.venv/bin/python tools/goldens/check_oracle.py
Needs numpy only.  Exit code 1 when a figure differs.
"""

import argparse
import hashlib
import os
import sys
import tempfile

import numpy as np

from cases import CASES
from checkpoint import make_tensors, read_safetensors, token_ids, write_safetensors
from oracle import Oracle

TOLERANCE = 2e-6  # the figures have six decimals
FIGURES = {
    "v3": (
        "d60accb851e12189",
        [-0.414001, -1.729019, -0.257415, -0.317723, 1.610953, -1.151016],
        [-1.573782, 0.729593, -1.433505],
    ),
    "v3neg": (
        "3a5d1735bdfd8ff6",
        [-0.413459, -1.727947, -0.257730, -0.317074, 1.611679, -1.150136],
        [-1.565241, 0.714009, -1.404262],
    ),
    "v3plain": (
        "d60accb851e12189",
        [0.197130, -1.199790, -0.403518, -0.557061, 1.601269, -0.790613],
        [-0.395914, 0.782521, 0.179719],
    ),
    "v2": ("b36b19ebc89fb31c", [0.062698, 1.359088, -1.200197, 0.617140, 0.197814, -1.527085], None),
    "v2lite": ("e27e88144cef4c9c", [0.258776, 0.405365, -0.188294, -0.914531, 0.754546, 0.891584], None),
    "v3fp8": (
        "1ca26080e4229726",
        [0.615784, -1.044135, 0.691533, -2.038805, 0.165103, 0.632170],
        [0.871872, -0.553601, 1.762383],
    ),
    "v31fp8": (
        "c8dbe7852ad4024d",
        [0.141136, -0.847336, 0.809545, -1.794655, 0.175814, 0.901122],
        [1.001307, -1.318789, 1.926860],
    ),
}


def check(name, folder):
    case = CASES[name]
    path = os.path.join(folder, name + ".safetensors")
    write_safetensors(path, make_tensors(case.config, case.dtype, case.bias_offset))
    digest = hashlib.sha256(open(path, "rb").read()).hexdigest()[:16]
    ids = token_ids("tokens", case.num_tokens, case.config["vocab_size"])
    logits, mtp, _ = Oracle(case.config, read_safetensors(path), "fp8").run(ids, len(ids))
    want_digest, want_logits, want_mtp = FIGURES[name]
    error = np.abs(logits[-1, :6] - want_logits).max()
    if want_mtp:
        error = max(error, np.abs(mtp[-1, :3] - want_mtp).max())
    good = digest == want_digest and error <= TOLERANCE
    print(f"{name:8} checkpoint {digest}  largest difference {error:.1e}  {'ok' if good else 'DIFFERS'}", flush=True)
    return good


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = [check(name, folder) for name in FIGURES]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
