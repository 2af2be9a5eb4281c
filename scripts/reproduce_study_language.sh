#!/usr/bin/env bash
# The study of a small real language model (docs/language.md): trains its runs and writes output/language/table.md.
#   scripts/reproduce_study_language.sh [--dry-run] [options of tools/sweep.py: --seeds 1 --methods FKL] [-- KEY VALUE ...]
# Needs the data and the teacher in data/ (docs/language.md), and a GPU or days on a CPU. It can be stopped and continued.
set -euo pipefail
. "$(dirname "$0")/environment.sh"
use_environment
arguments "$@"
no_smoke
sweep --study language
python tools/tables.py --study language --runs output/language > output/language/table.md
cat output/language/table.md
exit "$code"
