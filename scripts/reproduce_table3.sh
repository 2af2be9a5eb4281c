#!/usr/bin/env bash
# Table 3, Tiny-ImageNet: 8 trainings, each over 5 seeds.
# Options: see reproduce.sh.
exec "$(dirname "$0")/reproduce.sh" 3 "$@"
