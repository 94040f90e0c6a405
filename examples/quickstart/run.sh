#!/usr/bin/env bash
# The whole road of a small network: compile it, prove the artifact, run it, look at the answers.
# Makes the checkout's virtual environment when there is none. Needs Python 3.11 and a C compiler.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
bash ../../.ci/venv.sh
export PATH="$PWD/../../.venv/bin:$PATH"

run() {
    printf '\n$ %s\n' "$*"
    "$@"
}

run qcc compile -c qcc.yaml --force
run qcc verify digits.qcc --data evaluation.npz
run qcc run digits.qcc --data evaluation.npz -o answers.npz --force
run python show.py evaluation.npz answers.npz
