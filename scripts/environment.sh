# Sourced by the other scripts, with their arguments: answers --help with the comment at the head of the script, changes to
# the repository and provides a virtual environment with the project. An active environment is used; otherwise .venv is
# created. Extras can be installed: environment "test,report".
for word in "$@"; do
    case $word in
        --) break ;;
        -h|--help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; exit 0 ;;
    esac
done
cd "$(dirname "${BASH_SOURCE[0]}")/.."
environment() {
    if [ -n "${VIRTUAL_ENV:-}" ]; then
        echo "using the active environment $VIRTUAL_ENV"
    else
        [ -x .venv/bin/python ] || { echo "creating .venv"; "${PYTHON:-python3}" -m venv .venv; }
        . .venv/bin/activate
    fi
    python -c "import sys; sys.exit(sys.version_info < (3, 11))" || { echo "Python 3.11 or newer is needed" >&2; exit 2; }
    echo "installing (quiet; PyTorch is large)"
    python -m pip install --quiet --disable-pip-version-check -e ".${1:+[$1]}"
}
use_environment() {  # installs nothing; uses the active environment, else an existing .venv, else the python in PATH
    if [ -z "${VIRTUAL_ENV:-}" ] && [ -x .venv/bin/python ]; then . .venv/bin/activate; fi
}
named_table() {  # sets table to the first argument, which the scripts of the tables give
    table=${1:-}
    if [ -z "$table" ]; then echo "error: expected the name of a table, such as 2; --help says more" >&2; exit 2; fi
}
arguments() {  # parses those of a training script: sets smoke, dry, options (of tools/sweep.py), overrides (after --)
    smoke= dry= options=() overrides=()
    while [ $# -gt 0 ]; do
        case $1 in
            --smoke) smoke=1 ;;
            --install) environment report ;;
            --dry-run) dry=1 options+=(--dry-run) ;;
            --) shift; overrides=("$@"); break ;;
            *) options+=("$1") ;;
        esac
        shift
    done
}
override() {  # prints the value of a key among the overrides (KEY VALUE or KEY=VALUE), else the second word
    local value=$2 word previous=
    for word in ${overrides[@]+"${overrides[@]}"}; do
        case $word in "$1"=*) value=${word#*=} ;; esac
        if [ "$previous" = "$1" ]; then value=$word; fi
        previous=$word
    done
    echo "$value"
}
expect() {  # exits unless the arguments after the first are none, or the first
    local word=$1; shift
    case $* in ''|"$word") ;; *) echo "error: $*: expected ${word:+$word or }nothing" >&2; exit 2 ;; esac
}
no_smoke() {  # for studies, which have no smoke run
    if [ -n "$smoke" ]; then echo "error: --smoke: not for this script; expected --dry-run or nothing" >&2; exit 2; fi
}
sweep() {  # tools/sweep.py with these words, options and overrides; sets code, and exits unless a table is to follow
    code=0
    python tools/sweep.py "$@" ${options[@]+"${options[@]}"} ${overrides[@]+"${overrides[@]}"} || code=$?
    if [ -n "$dry" ] || { [ "$code" -ne 0 ] && [ "$code" -ne 3 ]; }; then exit "$code"; fi  # 3: some runs have failed
}
print_table() {  # tools/tables.py with these words and overrides, into $out/table<NAME>.md and on the screen; then exits
    mkdir -p "$out"
    python tools/tables.py --table "$table" ${smoke:+--smoke} "$@" ${overrides[@]+"${overrides[@]}"} > "$out/table$table.md"
    cat "$out/table$table.md"
    echo "saved in $out/table$table.md"
    exit "$code"
}
