#!/usr/bin/env python3
"""clang-tidy over the project, remembering clean files by content.

A file is checked again only when it, a header of this project that it includes, or a .clang-tidy changed; what was found clean is
remembered in ~/.cache/weir/lint, for all checkouts.

Example: tools/lint.py --build build/release worker/checkpoint/checkpoint.cc
"""
import argparse, concurrent.futures, hashlib, json, os, re, subprocess, sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
INCLUDE = re.compile(rb'^\s*#\s*include\s+"([^"]+)"', re.M)


def closure(path, seen):
    """The file and the headers of this project that it includes."""
    if path in seen or not os.path.isfile(path):
        return seen
    seen.add(path)
    with open(path, 'rb') as f:
        for name in INCLUDE.findall(f.read()):
            closure(os.path.join(ROOT, name.decode()), seen)
    return seen


def digest(path, config):
    h = hashlib.sha256(config)
    for name in sorted(closure(path, set())):
        h.update(os.path.relpath(name, ROOT).encode())
        with open(name, 'rb') as f:
            h.update(f.read())
    return h.hexdigest()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--build', default='build/release', help='folder that holds compile_commands.json')
    parser.add_argument('files', nargs='*', help='only these (default: every .cc of the project)')
    args = parser.parse_args()
    build = os.path.join(ROOT, args.build)
    with open(os.path.join(build, 'compile_commands.json')) as f:
        known = {os.path.realpath(os.path.join(e['directory'], e['file'])) for e in json.load(f)}
    files = [os.path.realpath(p) for p in args.files] or sorted(
        p for p in known if p.startswith(ROOT + '/') and not p.startswith(build) and p.endswith('.cc'))
    config = b''
    for name in ('.clang-tidy', 'tests/.clang-tidy'):
        with open(os.path.join(ROOT, name), 'rb') as f:
            config += f.read()
    cache = os.path.join(os.environ.get('XDG_CACHE_HOME', os.path.expanduser('~/.cache')), 'weir', 'lint')
    os.makedirs(cache, exist_ok=True)

    def check(path):
        mark = os.path.join(cache, digest(path, config))
        if os.path.exists(mark):
            return path, 0, ''
        run = subprocess.run(['clang-tidy-19', '--quiet', '--extra-arg=-Wno-unknown-warning-option', '-p', build, path], capture_output=True, text=True)
        if run.returncode == 0:
            open(mark, 'w').close()
        return path, run.returncode, run.stdout

    bad = 0
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for i, (path, code, text) in enumerate(pool.map(check, files), 1):
            if sys.stdout.isatty():
                print(f'\r  {i}/{len(files)} ', end='', flush=True)
            if code:
                bad += 1
                print(f'\n{os.path.relpath(path, ROOT)}\n{text}')
    print(f'\r  {len(files)} files, {bad} with findings')
    return 1 if bad else 0


if __name__ == '__main__':
    sys.exit(main())
