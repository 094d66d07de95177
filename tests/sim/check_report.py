#!/usr/bin/env python3
"""Holds the report of a failing seed against what it says: the lines that run the seed again do so, and nothing shorter fails.

Example: check_report.py build/release/tests/bin/mutant_stale_epoch_is_accepted
"""
import re, shlex, subprocess, sys


def run(arguments):
    return subprocess.run(arguments, capture_output=True, text=True)


def expect(condition, what):
    if not condition:
        sys.exit(what)


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    search = run([sys.argv[1], '--seeds', '100000', '--cpu-seconds', '60', '--expect-failure'])
    expect(search.returncode == 0, f'nothing was found:\n{search.stdout}{search.stderr}')
    failed = re.search(r'FAILED seed (\d+) at event (\d+): \[(\w+)\]', search.stdout)
    again = re.search(r'Run it again: +(.+)', search.stdout)
    short = re.search(r'As short as it gets: +(.+)', search.stdout)
    expect(failed and again and short, f'the report is not complete:\n{search.stdout}')
    seed, event, checker = int(failed[1]), int(failed[2]), failed[3]

    for line in again[1], short[1]:
        arguments = shlex.split(line)
        expect(f'--seed {seed}' in line, f'another seed: {line}')
        result = run(arguments)
        expect(result.returncode == 1 and f'[{checker}]' in result.stdout.splitlines()[-1],
               f'{line}\ndoes not break [{checker}] again:\n{result.stdout[-2000:]}')

    arguments = shlex.split(short[1])
    place = arguments.index('--events') + 1
    num_events = int(arguments[place])
    expect(num_events <= event, f'{num_events} events are no prefix of {event}')
    arguments[place] = str(num_events - 1)
    shorter = run(arguments)
    expect(num_events == 1 or shorter.returncode == 0 or f'[{checker}]' not in shorter.stdout.splitlines()[-1],
           f'one event less breaks [{checker}] too: {shlex.join(arguments)}')
    print(f'seed {seed}: [{checker}] at event {event}, again within {num_events} events of chaos')


if __name__ == '__main__':
    main()
