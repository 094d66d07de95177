#!/usr/bin/env python3
"""Runs two builds of the simulator over the same seeds: every event, output and plan must be the same.

Example: compare_traces.py build/release/tests/bin/sim_test build/release/tests/bin/sim_test_debug
"""
import subprocess, sys

SEEDS = 40


def trace(program):
    run = subprocess.run([program, '--first-seed', '900001', '--seeds', str(SEEDS), '--summary'],
                         capture_output=True, text=True)
    lines = [line for line in run.stdout.splitlines() if line.startswith('summary ')]
    if run.returncode != 0 or not lines:
        sys.exit(f'{program} failed:\n{run.stdout}{run.stderr}')
    return lines[0].split()[-1]


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    hashes = [trace(program) for program in sys.argv[1:]]
    print(f'{SEEDS} seeds: trace hashes {" and ".join(hashes)}')
    return 0 if hashes[0] == hashes[1] else 1


if __name__ == '__main__':
    sys.exit(main())
