#!/usr/bin/env bash
# Table 4, ImageNet, ResNet34 to ResNet18: 8 trainings, each over 3 seeds.
# Options: see reproduce.sh.
exec "$(dirname "$0")/reproduce.sh" 4 "$@"
