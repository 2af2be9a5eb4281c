#!/usr/bin/env bash
# One table of language models: train what it needs, sample and score answers, print it. reproduce_table7.sh and
# reproduce_tableA3.sh call this one. Needs the extra "llm" and, without --smoke, data/dolly and the networks.
#   scripts/reproduce_table7.sh [--smoke] [--install] [options of tools/sweep.py: --seeds 1 --jobs 4] [-- KEY VALUE ...]
# Stop it at any moment, the same command continues, within an answer file too. --dry-run: only what it will train.
# What is printed at the end is kept in output/table<NAME>.md (output/smoke_language/table<NAME>.md).
set -euo pipefail
table=$1
shift
. "$(dirname "$0")/environment.sh"
use_environment
arguments "$@"
out=output${smoke:+/smoke_language}
code=0
python tools/sweep.py --table "$table" ${smoke:+--smoke} ${options[@]+"${options[@]}"} ${overrides[@]+"${overrides[@]}"} || code=$?
if [ -n "$dry" ] || [ "$code" -ne 0 ] && [ "$code" -ne 3 ]; then exit "$code"; fi
if [ -z "$smoke" ]; then
    sets=()
    for name in dolly self_inst vicuna s_ni_11 u_ni_11; do
        if [ -f "data/dolly/$name.jsonl" ]; then sets+=("data/dolly/$name.jsonl"); fi
    done
    for run in output/sweep/dolly_*_gpt2_xl_gpt2*_s[0-9]; do
        if [ ${#sets[@]} -gt 0 ] && [ -f "$run/best.pth" ]; then
            for ngram in 6 0; do python tools/answers.py --run "$run" --ngram "$ngram" --sets "${sets[@]}"; done
        fi
    done
fi
mkdir -p "$out"
python tools/tables.py --table "$table" ${smoke:+--smoke} ${overrides[@]+"${overrides[@]}"} > "$out/table$table.md"
cat "$out/table$table.md"
echo "kept in $out/table$table.md"
exit "$code"
