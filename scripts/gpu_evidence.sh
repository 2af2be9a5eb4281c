#!/usr/bin/env bash
# What one GPU shows in 25 minutes: the tests marked cuda, the benchmarks, and as much of the study "full" as the time
# allows: ResNet-8 alone, by KD and by EA-KD, by the whole published schedule of CIFAR-100 (240 epochs).
#   scripts/gpu_evidence.sh [--minutes 25] [--root data] [--smoke]
# Everything that it reports lies in results/gpu/: tests.txt, bench/, runs.jsonl and runs.md. A run that the time did not
# suffice for lies in output/full/; the same command continues it, and leaves out tests and benchmarks that are there.
# --smoke does the same on a CPU in a minute, with an epoch of digits, and writes below output/gpu_smoke/ only.
set -euo pipefail
. "$(dirname "$0")/environment.sh"
minutes=25 root=data smoke=
while [ $# -gt 0 ]; do
    case $1 in
        --minutes) minutes=${2:-}; [ $# -lt 2 ] || shift ;;
        --root) root=${2:-}; [ $# -lt 2 ] || shift ;;
        --smoke) smoke=1 ;;
        *) echo "error: $1: expected --minutes N, --root FOLDER or --smoke" >&2; exit 2 ;;
    esac
    shift
done
case $minutes in ''|*[!0-9]*|0) echo "error: --minutes: expected a whole number above 0; found '$minutes'" >&2; exit 2 ;; esac
use_environment
total=$((60 * minutes)) keeping=30  # seconds; the last ones are for archiving
settings=(SOLVER.CUDA_GRAPH auto DATASET.ROOT "$root" DATASET.TEST.BATCH_SIZE 2500)
if [ -n "$smoke" ]; then
    out=output/gpu_smoke/results runs=output/gpu_smoke/full device=cpu jobs=(--fork --jobs 1)
    bench=(data --quick --repeats 1 --seconds 0 --images 16 --batch 8)
    settings+=(LOG.PREFIX output/gpu_smoke DATASET.TYPE digits DATASET.TRAIN_FRACTION 0.1 SOLVER.EPOCHS 1
        SOLVER.LR_DECAY_STAGES "[]" SOLVER.AMP none DISTILLER.TEACHER resnet20)
else
    if ! python -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then
        echo "error: no CUDA device is available; --smoke tries this script without one" >&2; exit 2
    fi
    out=results/gpu runs=output/full device=cuda jobs=(--jobs 4)  # one small network leaves a GPU idle
    bench=(graphs data step ea cache --root "$root" --repeats 3 --seconds 0.5)
fi
mkdir -p "$out"
limited() {  # runs a command for at most the given part of the time, in percent; 124 if that did not suffice
    local left=$((total - SECONDS - keeping)) most=$((total * $1 / 100)); shift
    [ "$left" -gt 10 ] || return 124
    timeout --signal=TERM --kill-after=60 "$((most < left ? most : left))" "$@"
}
ended() {  # keeps the exit code of what has failed; that the time is over is no failure
    case $1 in 0) ;; 124|137) over=1 ;; *) code=$1 ;; esac
}
code=0 over=
if [ ! -e "$out/tests.txt" ]; then
    limited 30 python -m pytest -m cuda -q -rs tests/cuda > "$out/tests.tmp" 2>&1 || ended $?
    mv "$out/tests.tmp" "$out/tests.txt"
    tail -n 3 "$out/tests.txt"
fi
if grep -qE "^(FAILED|ERROR)" "$out/tests.txt"; then settings[1]=never; fi  # training must not depend on what fails
if [ ! -e "$out/bench/bench.md" ]; then
    limited 25 python tools/bench.py "${bench[@]}" --device "$device" --output "$out/bench" || ended $?
fi
limited 100 python tools/sweep.py --study full --seeds 1 "${jobs[@]}" --methods "student alone" KD EA-KD -- \
    DEVICE "$device" "${settings[@]}" || ended $?
if ! grep -lqs '"status": "done"' "$runs"/*/summary.json; then
    echo "no run is finished yet; the same command continues"; exit "$code"
fi
python tools/compare.py "$runs" --keep "$out" > "$out/runs.tmp"
mv "$out/runs.tmp" "$out/runs.md"
cat "$out/runs.md"
[ -z "$over" ] || echo "the time is over; the same command continues"
exit "$code"
