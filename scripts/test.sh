#!/usr/bin/env bash
# The test suite: makes .venv unless an environment is active, installs, runs. Words go to pytest: scripts/test.sh -k ea
set -euo pipefail
. "$(dirname "$0")/environment.sh"
environment test
python -m pytest -n auto "$@"
