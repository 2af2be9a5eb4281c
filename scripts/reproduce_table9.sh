#!/usr/bin/env bash
# Table 9, parts of the weight (CIFAR-100): 16 trainings, each over 5 seeds; eight are Table 2's, one is Table 1's.
# Options: see reproduce.sh.
exec "$(dirname "$0")/reproduce.sh" 9 "$@"
