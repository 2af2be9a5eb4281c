#!/usr/bin/env bash
# One table of the paper: train what it needs, then print it. The script of each table calls this one with its name:
#   scripts/reproduce_table2.sh [--smoke] [--install] [options of tools/sweep.py: --seeds 3 --jobs 4] [-- KEY VALUE ...]
# Prints first what it will cost; stop it at any moment, the same command continues. --dry-run: only what it will cost.
# --smoke: the same cells on digits, for two epochs, between small networks: minutes. --install: an environment first.
# What is printed at the end is kept in output/table<NAME>.md (output/smoke/table<NAME>.md).
set -euo pipefail
table=$1
shift
. "$(dirname "$0")/environment.sh"
use_environment
arguments "$@"
out=output${smoke:+/smoke}
code=0
python tools/sweep.py --table "$table" ${smoke:+--smoke} ${options[@]+"${options[@]}"} ${overrides[@]+"${overrides[@]}"} || code=$?
if [ -n "$dry" ] || [ "$code" -ne 0 ] && [ "$code" -ne 3 ]; then exit "$code"; fi
mkdir -p "$out"  # a table of what is there, also when a run has failed (3)
python tools/tables.py --table "$table" ${smoke:+--smoke} --check ${overrides[@]+"${overrides[@]}"} > "$out/table$table.md"
cat "$out/table$table.md"
echo "kept in $out/table$table.md"
exit "$code"
