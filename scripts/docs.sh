#!/usr/bin/env bash
# The documentation as one site, searched and readable on a phone, in site/ (open site/index.html): the READMEs, the pages
# of docs/ and the reference made from docstrings. A warning is an error. Needs the extra "docs" (--install installs it).
set -euo pipefail
. "$(dirname "$0")/environment.sh"
expect --install "$@"
use_environment
if [ "${1:-}" = --install ]; then environment docs; fi
python scripts/docs_pages.py
python -m mkdocs build --strict  # with --quiet, mkdocs does not count warnings
echo "site/index.html"
