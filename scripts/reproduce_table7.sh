#!/usr/bin/env bash
# Table 7, language models (GPT-2 XL to GPT-2 on Dolly), with the controls: 10 trainings, each over 3 seeds, then
# answers to the instruction sets below DATASET.ROOT/dolly (test.jsonl, self_inst.jsonl, vicuna.jsonl, s_ni_11.jsonl,
# u_ni_11.jsonl: those that exist), then the table. Options: see reproduce.sh; --smoke: synthetic words, tiny models, minutes.
exec "$(dirname "$0")/reproduce_language.sh" 7 "$@"
