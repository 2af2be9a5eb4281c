#!/usr/bin/env bash
# Train the paper's teachers and copy them to the path where configs expect them: checkpoints/<dataset>/<network>.pth.
#   scripts/train_teachers.sh cifar100|tiny_imagenet|digits [--smoke] [--install] [options of tools/sweep.py] [-- KEY VALUE ...]
# Those of CIFAR-100 but wrn_28_4 can also be downloaded (tools/fetch_teachers.py); ImageNet's are torchvision's. Seed 0, weights
# of the last epoch, not selected on test images. Existing checkpoints are not overwritten. It can be stopped and continued.
set -euo pipefail
. "$(dirname "$0")/environment.sh"
use_environment
case ${1:-} in
    cifar100) networks="resnet32x4 wrn_28_4 wrn_40_2 vgg13 ResNet50" ;;
    tiny_imagenet) networks="resnet32x4 vit_b deit_b swin_b" ;;
    digits) networks="resnet20" ;;
    *) echo "error: ${1:-no name}: expected cifar100, tiny_imagenet or digits; --help says more" >&2; exit 2 ;;
esac
dataset=$1
shift
arguments "$@"
files=()
for network in $networks; do files+=("configs/$dataset/vanilla/$network.yaml"); done
python tools/sweep.py --cfg "${files[@]}" ${smoke:+--smoke} ${options[@]+"${options[@]}"} ${overrides[@]+"${overrides[@]}"}
[ -z "$smoke" ] || exit 0  # the networks of a smoke run are not teachers
for network in $networks; do
    run=output/sweep/${dataset}_vanilla_${network}_s0
    name=$(sed -n 's/.*STUDENT: *"\{0,1\}\([^",}]*\).*/\1/p' "configs/$dataset/vanilla/$network.yaml" | head -1)
    place=checkpoints/$dataset/${name//:/-}.pth
    if [ ! -e "$place" ] && grep -qs '"status": "done"' "$run/summary.json"; then
        mkdir -p "checkpoints/$dataset" && cp "$run/student_latest.pth" "$place" && echo "$place"
    fi
done
