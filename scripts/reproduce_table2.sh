#!/usr/bin/env bash
# Table 2, the EA variants and their baselines on seven pairs of networks (CIFAR-100): 98 trainings, each over 5 seeds.
# Options: see reproduce.sh.
exec "$(dirname "$0")/reproduce.sh" 2 "$@"
