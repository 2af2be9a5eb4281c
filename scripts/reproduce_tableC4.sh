#!/usr/bin/env bash
# Table C4, the EA-methods of Table 2 (CIFAR-100): 49 trainings, each over 5 seeds.
# Options: see reproduce.sh.
exec "$(dirname "$0")/reproduce.sh" C4 "$@"
