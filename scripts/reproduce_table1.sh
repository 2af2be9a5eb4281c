#!/usr/bin/env bash
# Table 1, EA by other weights, on KD (CIFAR-100): 5 trainings, each over 5 seeds.
# Options: see reproduce.sh.
exec "$(dirname "$0")/reproduce.sh" 1 "$@"
