#!/usr/bin/env bash
# Table 5, transformer teachers on Tiny-ImageNet: 6 trainings, each over 3 seeds.
# Options: see reproduce.sh.
exec "$(dirname "$0")/reproduce.sh" 5 "$@"
