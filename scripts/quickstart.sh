#!/usr/bin/env bash
# Trains a student alone, with KD and with EA-KD on scanned digits (teacher: checkpoints/digits/, three seeds), two runs at a
# time with one thread each, then prints a comparison of these runs. It can be stopped; the same command continues.
set -euo pipefail
. "$(dirname "$0")/environment.sh"
expect "" "$@"
environment
export OMP_NUM_THREADS=1  # small networks gain more from two runs at a time than from two threads
digits=configs/digits fork=
if [ "$(uname)" = Linux ]; then fork=--fork; fi  # saves the imports of each run
python tools/sweep.py --cfg $digits/vanilla/resnet8.yaml $digits/kd/res20_res8.yaml $digits/ea_kd/res20_res8.yaml \
    --seeds 3 --jobs 2 $fork EXPERIMENT.PROJECT quickstart
python tools/compare.py output/quickstart
