#!/usr/bin/env bash
# Train the runs for every figure of the paper, measure them, draw the figures, and write an HTML page with all of them.
#   scripts/reproduce_figures.sh [--figure 2 B1] [--smoke] [--install] [options of tools/sweep.py: --seeds 3 --jobs 4]
#       [-- KEY VALUE ...]
# --figure: only these figures, and only the runs that they need (2 for each of 2 to 4, 6, 7, B1 and B2).
# ResNet32x4 to ResNet8x4 on CIFAR-100: 14 trainings for figures 1-7 and B1-B3, and 10 more with other values of DKD's beta
# for figure 8; on Tiny-ImageNet 2 for the second panel of figure 5, in output/figures/figures/figure_5_tiny_imagenet.png.
# One seed each unless --seeds is given. It first prints the number of runs and, once one run of each configuration is finished, the time
# left. It can be stopped at any time; the same command continues. Measurements are not repeated: delete
# output/figures/analysis after further runs. --dry-run: only prints the runs and their commands. --install: create an
# environment first. --smoke: KD, DKD and their EA- variants on digits for two epochs (minutes), without the second panel.
set -euo pipefail
. "$(dirname "$0")/environment.sh"
use_environment
figures=() others=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    if [ "$1" != --figure ]; then
        others+=("$1")
        shift
        continue
    fi
    shift
    while [ $# -gt 0 ] && [[ $1 != -* ]]; do
        case $1 in
            [1-8]|B[1-3]) figures+=("$1") ;;
            *) echo "error: --figure $1: expected 1 to 8, B1, B2 or B3" >&2; exit 2 ;;
        esac
        shift
    done
    if [ ${#figures[@]} -eq 0 ]; then echo "error: --figure: expected names of figures after it" >&2; exit 2; fi
done
all=
[ ${#figures[@]} -gt 0 ] || { figures=(1 2 3 4 5 6 7 8 B1 B2 B3) all=1; }
arguments ${others[@]+"${others[@]}"} "$@"
needs() {  # whether one of these figures is wanted
    local name figure
    for name in "$@"; do for figure in "${figures[@]}"; do [ "$figure" != "$name" ] || return 0; done; done
    return 1
}
out=output/${smoke:+smoke_}figures
if [ -n "$smoke" ]; then
    folder=configs/digits pair=res20_res8 betas="2.0 8.0" measure=(--points 5 --images 100)
    names=(kd ea_kd dkd ea_dkd)
    options=(--fork ${options[@]+"${options[@]}"})
    overrides=(SOLVER.EPOCHS 2 SOLVER.LR_DECAY_STAGES "[1]" DATASET.TEST.BATCH_SIZE 500 LOG.ENTROPY_TRACE 200
               LOG.SAVE_CHECKPOINT_FREQ 1 ${overrides[@]+"${overrides[@]}"})
else
    folder=configs/cifar100 pair=res32x4_res8x4 betas="1.0 2.0 4.0 6.0 8.0 10.0" measure=()
    names=(kd ea_kd ctkd ea_ctkd dkd ea_dkd mld ea_mld mld_ls ea_mld_ls reviewkd ea_reviewkd fcfd ea_fcfd)
    overrides=(LOG.ENTROPY_TRACE 5000 LOG.SAVE_CHECKPOINT_FREQ 40 ${overrides[@]+"${overrides[@]}"})
fi
if ! needs 1 B3; then
    names=()
    if needs 2 3 4 5 6 B1 B2; then names+=(kd ea_kd); fi
    if needs 7; then names+=(dkd ea_dkd); fi
fi
files=(${names[@]+"${names[@]/#/$folder/}"})
files=(${files[@]+"${files[@]/%//$pair.yaml}"})
paired=()  # all figures but 8
for figure in "${figures[@]}"; do if [ "$figure" != 8 ]; then paired+=("$figure"); fi; done
train() { python tools/sweep.py ${options[@]+"${options[@]}"} "$@" ${overrides[@]+"${overrides[@]}"} LOG.PREFIX "$out/runs"; }
if [ -n "$all" ] && [ -z "$smoke" ]; then
    echo "24 trainings of 240 epochs (3 of them 480) on CIFAR-100 and 2 on Tiny-ImageNet for each seed; to measure and" \
        "draw takes minutes on a GPU"
fi
if [ ${#paired[@]} -gt 0 ]; then
    echo "training for figures ${paired[*]}"
    train --cfg "${files[@]}" EXPERIMENT.PROJECT pairs
fi
if ! needs 8; then betas=; fi
for beta in $betas; do  # runs with the default beta are found among those above
    echo "training for figure 8: DKD.BETA $beta"
    train --cfg "$folder/dkd/$pair.yaml" "$folder/ea_dkd/$pair.yaml" DKD.BETA "$beta" EXPERIMENT.PROJECT beta
done
if needs 5 && [ -z "$smoke" ]; then
    echo "training for figure 5 on Tiny-ImageNet"
    train --cfg configs/tiny_imagenet/{kd,ea_kd}/$pair.yaml EXPERIMENT.PROJECT tiny_imagenet
fi
if [ -n "$dry" ]; then exit; fi
analyze() { python tools/analyze.py --output "$out/analysis" ${measure[@]+"${measure[@]}"} "$@"; }
if [ ${#paired[@]} -gt 0 ]; then analyze --figure "${paired[@]}" --runs "$out/runs/pairs"; fi
if needs 8; then analyze --figure 8 --runs "$out/runs"; fi
python tools/figures.py --figure "${figures[@]}" --analysis "$out/analysis" --output "$out/figures"
if needs 5 && [ -z "$smoke" ]; then
    analyze --figure 5 --runs "$out/runs/tiny_imagenet" --output "$out/analysis/tiny_imagenet"
    python tools/figures.py --figure 5 --analysis "$out/analysis/tiny_imagenet" --output "$out/figures/tiny_imagenet"
    cp "$out/figures/tiny_imagenet/figure_5.png" "$out/figures/figure_5_tiny_imagenet.png"  # for the page
fi
python tools/report.py --runs "$out/runs" --figures "$out/figures" --output "$out/report.html"
