#!/usr/bin/env python3
"""Runs one end-to-end test file in an environment of its own: pinned grpcio, and stubs made from proto/.

The environment lies in build/e2e and is made on first use (needs the network once, some ten seconds).

Examples:
  tests/e2e/run.py --prepare                     only make the environment
  tests/e2e/run.py tests/e2e/streams_test.py     run one file
  tests/e2e/run.py tests/e2e/failures_test.py FailuresTest.test_a_rank_that_dies_is_not_seen_in_any_stream
"""
import hashlib
import os
import shutil
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
FOLDER = os.path.join(ROOT, "build", "e2e")
SKIPPED = 77  # what CTest takes for "skipped"
PROTOS = [
    "weir/v1/inference.proto",
    "weir/scheduler/v1/scheduler.proto",
    "google/rpc/error_details.proto",
    "google/rpc/status.proto",
]


def digest(paths):
    total = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            total.update(file.read())
    return total.hexdigest()


def is_done(stamp, text):
    if not os.path.exists(stamp):
        return False
    with open(stamp) as file:
        return file.read() == text


def once(folder, text, make):
    """Makes `folder` with make(folder) unless it was made from the same inputs before."""
    stamp = os.path.join(folder, "made_from")
    if is_done(stamp, text):
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    make(folder)
    with open(stamp, "w") as file:
        file.write(text)
    return folder


def make_venv(folder):
    print(f"end-to-end tests: making a Python environment in {os.path.relpath(folder, ROOT)}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [os.path.join(folder, "bin", "pip"), "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run(pip + ["-r", os.path.join(HERE, "requirements.txt")], check=True)


def make_stubs(python, folder):
    code = "import sys, os, grpc_tools; from grpc_tools import protoc; sys.exit(protoc.main(sys.argv + ['-I' + os.path.join(os.path.dirname(grpc_tools.__file__), '_proto')]))"
    arguments = ["-I" + os.path.join(ROOT, "proto"), f"--python_out={folder}", f"--grpc_python_out={folder}"]
    subprocess.run([python, "-c", code, *arguments, *PROTOS], check=True)


def prepare():
    venv = once(os.path.join(FOLDER, "venv"), digest([os.path.join(HERE, "requirements.txt")]), make_venv)
    python = os.path.join(venv, "bin", "python")
    inputs = digest([os.path.join(ROOT, "proto", name) for name in PROTOS])
    return python, once(os.path.join(FOLDER, "stubs"), inputs, lambda folder: make_stubs(python, folder))


def main():
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(__doc__)
        return 0 if len(sys.argv) > 1 else 2
    try:
        python, stubs = prepare()
    except subprocess.CalledProcessError as error:
        print(f"end-to-end tests: no Python environment ({error}); they need the network once, and python3-venv")
        return SKIPPED
    if sys.argv[1] == "--prepare":
        return 0
    model = os.environ.get("WEIR_E2E_MODEL", os.path.join(ROOT, "tools", "demo_model", "weights"))
    if not os.path.exists(os.path.join(model, "config.json")):
        print(f"end-to-end tests: no model at {model}; set WEIR_E2E_MODEL to a checkpoint directory with a tokenizer")
        return SKIPPED
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([HERE, stubs]), "PYTHONDONTWRITEBYTECODE": "1"}
    os.execve(python, [python, *sys.argv[1:]], environment)


if __name__ == "__main__":
    sys.exit(main())
