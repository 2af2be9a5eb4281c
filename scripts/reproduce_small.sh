#!/usr/bin/env bash
# The small replica on CIFAR-100 (docs/results.md): all its runs, their records in results/small, the tables.
#   scripts/reproduce_small.sh [--install] [--dry-run] [options of tools/sweep.py: --jobs 2 --methods KD EA-KD] [-- KEY VALUE ...]
# Needs CIFAR-100 in data/. Some hours on two cores; stop it at any moment, the same command continues. The teacher is
# checkpoints/cifar100/wrn_16_2.pth.
set -euo pipefail
. "$(dirname "$0")/environment.sh"
use_environment
arguments "$@"
if [ -n "$smoke" ]; then echo "error: --smoke: not for this script; expected --dry-run or nothing" >&2; exit 2; fi
code=0
python tools/sweep.py --study small --fork "${options[@]}" "${overrides[@]}" || code=$?
if [ -n "$dry" ]; then exit "$code"; fi
if [ "$code" -eq 0 ] || [ "$code" -eq 3 ]; then
    python tools/compare.py output/small --keep results/small
    python tools/tables.py --study small --runs results
fi
exit "$code"
