#!/usr/bin/env bash
# Run the test suite; creates .venv unless an environment is active. Arguments go to pytest: scripts/test.sh -k ea
set -euo pipefail
. "$(dirname "$0")/environment.sh"
environment test
python -m pytest -n auto --dist worksteal "$@"  # neighbours share fixtures, so a worker takes a whole half
