#!/usr/bin/env bash
# Train the runs of one table of the paper, then print the table. The script of each table calls this one with its name:
#   scripts/reproduce_table2.sh [--smoke] [--install] [options of tools/sweep.py: --seeds 3 --jobs 4] [-- KEY VALUE ...]
# It first prints the number of runs and, once one run of each configuration is finished, the time left. It can be stopped
# at any time; the same command continues. --dry-run: only prints this and the commands.
# --smoke: the same cells on digits for two epochs with small networks (minutes). --install: create an environment first.
# The table is also saved in output/table<NAME>.md (output/smoke/table<NAME>.md).
set -euo pipefail
. "$(dirname "$0")/environment.sh"
use_environment
named_table "$@"
shift
arguments "$@"
out=output${smoke:+/smoke}
sweep --table "$table" ${smoke:+--smoke}
print_table --check
