#!/usr/bin/env bash
# Table A3, the two divergences of DistiLLM beside EA-KD, with the controls: 8 trainings, each over 3 seeds, then
# their answers and the table. Options: see reproduce_table7.sh.
exec "$(dirname "$0")/reproduce_language.sh" A3 "$@"
