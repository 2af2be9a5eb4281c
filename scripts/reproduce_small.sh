#!/usr/bin/env bash
# The small replica on CIFAR-100 (docs/results.md): trains all runs, archives them in results/, makes tables and figures.
#   scripts/reproduce_small.sh [--install] [--dry-run] [options of tools/sweep.py: --jobs 2 --methods KD EA-KD] [-- KEY VALUE ...]
# Needs CIFAR-100 in data/ and hours on two cores (set OMP_NUM_THREADS=1 for --jobs 2 on a CPU). It can be stopped at any
# time; the same command continues. --runs results: train only runs that are not archived there. The teachers are in
# checkpoints/cifar100/.
set -euo pipefail
. "$(dirname "$0")/environment.sh"
use_environment
arguments "$@"
no_smoke
sweep --study small --fork
if [ -d output/small ]; then
    python tools/compare.py output/small --keep results/small > output/small/all_runs.md
    python tools/tables.py --study small --runs results --write docs/results.md
    runs=output/small out=output/small_figures  # figures need the weights, which are not archived
    analyze() { python tools/analyze.py --again --output "$out/analysis" "$@" || true; }  # its error message names missing runs
    analyze --figure 2 3 5 6 --runs "$runs"/{kd,ea_kd}_s[0-9]
    analyze --figure 7 --runs "$runs"/{dkd,ea_dkd}_s0
    analyze --figure 8 --runs "$runs"/{dkd,ea_dkd}_s[0-9] "$runs"/{dkd,ea_dkd}_beta_*_s[0-9]
    if python tools/figures.py --figure all --analysis "$out/analysis" --output "$out"; then
        cp "$out"/*.png docs/figures/
        cp "$out"/analysis/*.{csv,json} results/small_figures/
    fi
fi
exit "$code"
