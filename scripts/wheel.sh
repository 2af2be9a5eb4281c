#!/usr/bin/env bash
# Builds the source archive and the wheel in dist/, checks what they say of themselves, and tries the installed wheel from
# an empty folder: a config and a teacher that come along, a training, its evaluation. --check: not into dist/, and with
# the libraries of the active environment. Fetches setuptools, build and twine.
set -euo pipefail
. "$(dirname "$0")/environment.sh"
expect --check "$@"
use_environment
unset PYTHONPATH  # what lies there would count as installed
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
out=dist
[ "${1:-}" != --check ] || out=$work/dist
libraries=$(python -c "import sysconfig; print(sysconfig.get_path('purelib'))")
python -m venv "$work/tools"
"$work/tools/bin/python" -m pip install --quiet --disable-pip-version-check build twine "setuptools>=77"
"$work/tools/bin/python" -m build --no-isolation --outdir "$out" . > "$work/build.log" || { cat "$work/build.log" >&2; exit 1; }
"$work/tools/bin/python" -m twine check --strict "$out"/*
wheel=$(realpath "$(ls -t "$out"/*.whl | head -1)")
python -m venv "$work/venv"
own=$("$work/venv/bin/python" -c "import sysconfig; print(sysconfig.get_path('purelib'))")
if [ "${1:-}" = --check ]; then
    "$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps "$wheel"
    echo "$libraries" > "$own/libraries.pth"  # behind the wheel's own files
else
    "$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$wheel"
fi
mkdir "$work/empty"
cd "$work/empty"
PATH=$work/venv/bin:$PATH
python -c "import mdistiller, sys; sys.exit(not mdistiller.__file__.startswith(sys.argv[1]))" "$work/venv"
mdistiller-configs digits/ea_kd/
mdistiller-train --cfg digits/ea_kd/res20_res8.yaml SOLVER.EPOCHS 1 SOLVER.LR_DECAY_STAGES "[]" | grep "teacher resnet20 from"
mdistiller-eval --run output/distill/digits_ea-kd_resnet20_resnet8_s0 | grep "last: top-1"
mdistiller-configs digits/kd/ --copy mine
mdistiller-train --cfg mine/digits/kd/res20_res8.yaml SOLVER.EPOCHS 1 SOLVER.LR_DECAY_STAGES "[]" > /dev/null
mdistiller-compare output/distill | grep "EA-KD"
[ "${1:-}" != --check ] || mdistiller-report --runs output/distill | grep MB  # needs the extra "report"
echo "the wheel works: $(basename "$wheel")"
