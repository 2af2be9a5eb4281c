# Sourced by the other scripts: the repository as working folder, and a virtual environment with the project in it.
# An active environment is used as it is; else .venv is made. Extras to install: environment "test,report".
cd "$(dirname "${BASH_SOURCE[0]}")/.."
environment() {
    if [ -n "${VIRTUAL_ENV:-}" ]; then
        echo "using the active environment $VIRTUAL_ENV"
    else
        [ -x .venv/bin/python ] || { echo "making .venv"; "${PYTHON:-python3}" -m venv .venv; }
        . .venv/bin/activate
    fi
    python -c "import sys; sys.exit(sys.version_info < (3, 11))" || { echo "Python 3.11 or newer is needed" >&2; exit 2; }
    echo "installing (quiet; PyTorch is large)"
    python -m pip install --quiet --disable-pip-version-check -e ".${1:+[$1]}"
}
use_environment() {  # installs nothing: the active environment, else .venv when it is there, else python as it is found
    if [ -z "${VIRTUAL_ENV:-}" ] && [ -x .venv/bin/python ]; then . .venv/bin/activate; fi
}
arguments() {  # of the scripts that train: sets smoke, dry, options (of tools/sweep.py) and overrides (after --)
    smoke= dry= options=() overrides=()
    while [ $# -gt 0 ]; do
        case $1 in
            --smoke) smoke=1 ;;
            -h|--help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; exit 0 ;;
            --install) environment report ;;
            --dry-run) dry=1 options+=(--dry-run) ;;
            --) shift; overrides=("$@"); break ;;
            *) options+=("$1") ;;
        esac
        shift
    done
}
