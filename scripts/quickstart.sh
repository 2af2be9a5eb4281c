#!/usr/bin/env bash
# A student alone, by KD and by EA-KD, from the teacher in checkpoints/digits/, over three seeds, on real scans; then the
# comparison, from the run folders just written. About four minutes of training on a CPU; stop and continue at will.
set -euo pipefail
. "$(dirname "$0")/environment.sh"
environment
for seed in 0 1 2; do
    for method in vanilla/resnet8 kd/res20_res8 ea_kd/res20_res8; do
        python tools/train.py --cfg "configs/digits/$method.yaml" --resume EXPERIMENT.PROJECT quickstart EXPERIMENT.SEED "$seed"
    done
done
python tools/compare.py output/quickstart
