#!/usr/bin/env bash
# The study of a real language model on a CPU (docs/language.md): its runs and their table, output/language/table.md.
#   scripts/reproduce_study_language.sh [--dry-run] [options of tools/sweep.py: --seeds 1 --methods FKL] [-- KEY VALUE ...]
# Needs the data and the teacher below data/ (docs/language.md). Hours on two cores; the same command continues.
set -euo pipefail
. "$(dirname "$0")/environment.sh"
use_environment
arguments "$@"
if [ -n "$smoke" ]; then echo "error: --smoke: not for this script; expected --dry-run or nothing" >&2; exit 2; fi
code=0
python tools/sweep.py --study language ${options[@]+"${options[@]}"} ${overrides[@]+"${overrides[@]}"} || code=$?
if [ -n "$dry" ] || { [ "$code" -ne 0 ] && [ "$code" -ne 3 ]; }; then exit "$code"; fi
python tools/tables.py --study language --runs output/language > output/language/table.md
cat output/language/table.md
exit "$code"
