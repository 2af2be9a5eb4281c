#!/usr/bin/env bash
# The paper's teachers, trained here, put where the configs look for them: checkpoints/<dataset>/<network>.pth.
#   scripts/train_teachers.sh cifar100|tiny_imagenet|digits [--smoke] [--install] [options of tools/sweep.py] [-- KEY VALUE ...]
# CIFAR-100's can also be fetched (tools/fetch_teachers.py); ImageNet's are torchvision's. Seed 0, the weights of the last
# epoch, which no test image chose. A checkpoint that is there already is left as it is. Stop and continue at will.
set -euo pipefail
. "$(dirname "$0")/environment.sh"
use_environment
case ${1:-} in
    cifar100) networks="resnet32x4 wrn_28_4 wrn_40_2 vgg13 ResNet50" ;;
    tiny_imagenet) networks="resnet32x4 vit_b deit_b swin_b" ;;
    digits) networks="resnet20" ;;
    *) sed -n '2,5s/^# //p' "scripts/train_teachers.sh" >&2; exit 2 ;;
esac
dataset=$1
shift
arguments "$@"
files=()
for network in $networks; do files+=("configs/$dataset/vanilla/$network.yaml"); done
python tools/sweep.py --cfg "${files[@]}" ${smoke:+--smoke} ${options[@]+"${options[@]}"} ${overrides[@]+"${overrides[@]}"}
[ -z "$smoke" ] || exit 0  # stand-ins of two epochs teach nobody
for network in $networks; do
    run=output/sweep/${dataset}_vanilla_${network}_s0
    name=$(sed -n 's/.*STUDENT: *"\{0,1\}\([^",}]*\).*/\1/p' "configs/$dataset/vanilla/$network.yaml" | head -1)
    place=checkpoints/$dataset/${name//:/-}.pth
    if [ ! -e "$place" ] && grep -qs '"status": "done"' "$run/summary.json"; then
        mkdir -p "checkpoints/$dataset" && cp "$run/student_latest.pth" "$place" && echo "$place"
    fi
done
