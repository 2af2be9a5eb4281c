#!/usr/bin/env bash
# Train the runs of one table of language models, generate and score answers, print the table. reproduce_table7.sh and
# reproduce_tableA3.sh call this one. Needs the extra "llm" and, without --smoke, DATASET.ROOT/dolly and the networks.
#   scripts/reproduce_table7.sh [--smoke] [--install] [options of tools/sweep.py: --seeds 1 --jobs 4] [-- KEY VALUE ...]
# It can be stopped at any time; the same command continues, also within a file of answers. --dry-run: only prints the plan.
# The table is also saved in output/table<NAME>.md (output/smoke_language/table<NAME>.md).
set -euo pipefail
. "$(dirname "$0")/environment.sh"
use_environment
named_table "$@"
shift
arguments "$@"
out=output${smoke:+/smoke_language}
sweep --table "$table" ${smoke:+--smoke}
if [ -z "$smoke" ]; then
    data=$(override DATASET.ROOT data)/dolly sets=()
    for entry in dolly=test self_inst=self_inst vicuna=vicuna s_ni_11=s_ni_11 u_ni_11=u_ni_11; do
        file=$data/${entry#*=}.jsonl
        if [ -f "$file" ]; then sets+=("${entry%%=*}=$file"); else echo "no $file: its column stays empty"; fi
    done
    answers() { for ngram in 6 0; do python tools/answers.py --ngram "$ngram" --sets "${sets[@]}" "$@"; done; }
    taught=  # a run whose teacher answers too
    runs=$(override LOG.PREFIX output)/$(override EXPERIMENT.PROJECT sweep)
    for run in "$runs"/dolly_*_gpt2_xl_gpt2*_s[0-9]; do
        if [ ${#sets[@]} -gt 0 ] && [ -f "$run/best.pth" ]; then
            answers --run "$run"
            case $run in */dolly_sft_*) ;; *) taught=${taught:-$run} ;; esac
        fi
    done
    if [ -n "$taught" ]; then answers --run "$taught" --checkpoint teacher; fi
fi
print_table
