#!/usr/bin/env bash
# Everything that must hold before a change lands: style, types, import rules, tests.
# Arguments go to pytest: bash .ci/test.sh -k overflow
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash .ci/venv.sh dev
bash .ci/tools.sh

.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
.venv/bin/lint-imports --no-cache
exec .venv/bin/python -m pytest --numprocesses auto "$@"
