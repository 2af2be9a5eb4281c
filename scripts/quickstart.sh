#!/usr/bin/env bash
# Trains a student alone, with KD and with EA-KD on scanned digits (teacher: checkpoints/digits/, three seeds), then prints
# a comparison of these runs. About four minutes of training on a CPU. It can be stopped; the same command continues.
set -euo pipefail
. "$(dirname "$0")/environment.sh"
environment
for seed in 0 1 2; do
    for method in vanilla/resnet8 kd/res20_res8 ea_kd/res20_res8; do
        python tools/train.py --cfg "configs/digits/$method.yaml" --resume EXPERIMENT.PROJECT quickstart EXPERIMENT.SEED "$seed"
    done
done
python tools/compare.py output/quickstart
