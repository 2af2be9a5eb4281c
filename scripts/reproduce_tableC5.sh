#!/usr/bin/env bash
# Table C5, means and deviations of Table 4 (ImageNet): 8 trainings, each over 3 seeds.
# Options: see reproduce.sh.
exec "$(dirname "$0")/reproduce.sh" C5 "$@"
