#!/usr/bin/env bash
# Table A1, TTM, WTTM and EA-TTM (CIFAR-100): 9 trainings, each over 5 seeds.
# Options: see reproduce.sh.
exec "$(dirname "$0")/reproduce.sh" A1 "$@"
