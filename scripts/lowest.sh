#!/usr/bin/env bash
# Run the test suite with the oldest libraries that pyproject.toml admits, in .venv-lowest, which it creates (6 GB).
# Arguments go to pytest: scripts/lowest.sh tests/models
set -euo pipefail
. "$(dirname "$0")/environment.sh"
[ -x .venv-lowest/bin/python ] || "${PYTHON:-python3}" -m venv .venv-lowest
. .venv-lowest/bin/activate
constraints=$(mktemp)
trap 'rm -f "$constraints"' EXIT
python - > "$constraints" <<'END'
import re, tomllib

project = tomllib.load(open("pyproject.toml", "rb"))["project"]
for line in {*project["dependencies"], *sum(project["optional-dependencies"].values(), [])}:
    if ">=" in line:
        print(re.sub(r"\[.*\]", "", line).replace(">=", "=="))
END
export PIP_CONSTRAINT=$constraints
environment test
python -m pytest -n auto --dist worksteal "$@"
