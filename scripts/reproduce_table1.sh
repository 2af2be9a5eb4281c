#!/usr/bin/env bash
# Table 1, other weights for EA with KD (CIFAR-100): 5 trainings, each over 5 seeds.
# Options: see reproduce.sh.
exec "$(dirname "$0")/reproduce.sh" 1 "$@"
