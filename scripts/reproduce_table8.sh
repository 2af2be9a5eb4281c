#!/usr/bin/env bash
# Table 8, the entropy temperature (CIFAR-100): 9 trainings, each over 5 seeds; three are Table 2's.
# Options: see reproduce.sh.
exec "$(dirname "$0")/reproduce.sh" 8 "$@"
