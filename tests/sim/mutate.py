#!/usr/bin/env python3
"""Plants the bugs of mutants.txt into copies of the core's sources, each behind `#if WEIR_MUTANT == n`.

The core itself stays as it is.  A mutant whose original text is not found exactly once stops the build: the core has
changed, and the mutant must follow.

Examples:
  mutate.py --list tests/sim/mutants.txt                      number, name and file of each mutant, one a line
  mutate.py --root . --out build/mutants tests/sim/mutants.txt   write the copies
"""
import argparse, os, re, sys

MUTANT = re.compile(r'mutant (?P<name>\w+)\nfile (?P<file>\S+)\nbreaks (?P<breaks>.+)\n'
                    r'--- original\n(?P<original>(?:.*\n)+?)--- mutated\n(?P<mutated>(?:.*\n)*?)--- end\n')


def read_mutants(path):
    with open(path, encoding='utf-8') as f:
        text = f.read()
    mutants = [m.groupdict() for m in MUTANT.finditer(text)]
    if len(mutants) != len(re.findall(r'^mutant ', text, re.M)):
        broken = sorted(set(re.findall(r'^mutant (\w+)', text, re.M)) - {m['name'] for m in mutants})
        sys.exit(f'{path}: not in the form that the file\'s head describes: {", ".join(broken) or "a name used twice"}')
    for number, mutant in enumerate(mutants, 1):
        mutant['number'] = number
        if not mutant['file'].endswith('.cc'):
            sys.exit(f'{path}: mutant {mutant["name"]}: only .cc files can be mutated, not {mutant["file"]}')
    return mutants


def plant(source, mutants, path):
    """The source with all its mutants; several may share one original text, but texts may not overlap."""
    sites = {}
    for mutant in mutants:
        count = source.count('\n' + mutant['original'])
        if count != 1:
            sys.exit(f'{path}: mutant {mutant["name"]}: its original text is found {count} times, not once:\n'
                     f'{mutant["original"]}Change mutants.txt to follow the source.')
        sites.setdefault(source.index('\n' + mutant['original']) + 1, []).append(mutant)
    result, position = [], 0
    for start in sorted(sites):
        group = sites[start]
        if start < position or len({m['original'] for m in group}) > 1:
            sys.exit(f'{path}: mutant {group[0]["name"]}: its text overlaps that of another mutant')
        result.append(source[position:start])
        for i, mutant in enumerate(group):
            result.append(f'#{"el" if i else ""}if WEIR_MUTANT == {mutant["number"]}\n{mutant["mutated"]}')
        result.append(f'#else\n{group[0]["original"]}#endif\n')
        position = start + len(group[0]['original'])
    return ''.join(result) + source[position:]


def write(path, text):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if os.path.exists(path):
        with open(path, encoding='utf-8') as f:
            if f.read() == text:
                return  # nothing to compile again
    with open(path, 'w', encoding='utf-8') as f:
        f.write(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--list', action='store_true')
    parser.add_argument('--root', default='.')
    parser.add_argument('--out')
    parser.add_argument('mutants')
    args = parser.parse_args()
    mutants = read_mutants(args.mutants)
    if args.list:
        for mutant in mutants:
            print(mutant['number'], mutant['name'], mutant['file'])
        return
    for path in sorted({m['file'] for m in mutants}):
        with open(os.path.join(args.root, path), encoding='utf-8') as f:
            source = f.read()
        write(os.path.join(args.out, path), plant(source, [m for m in mutants if m['file'] == path], path))


if __name__ == '__main__':
    main()
