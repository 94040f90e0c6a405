#!/usr/bin/env bash
# Make or refresh the virtual environment .venv of this checkout and install qcc into it.
#
#     bash .ci/venv.sh [EXTRA]      e.g. dev, for what the tests need
#
# Does nothing when .venv already holds this pyproject.toml with this extra. Needs Python 3.11.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
extra=${1:-}

find_python() {
    local candidate
    for candidate in python3.11 python3 python; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "qcc needs Python 3.11, which is not on the PATH" >&2
    return 1
}

# What a stamp says is installed includes what an earlier call without the extra would install.
is_installed() {
    local stamp
    for stamp in .venv/.installed"${extra:+-$extra}"*; do
        if cmp -s pyproject.toml "$stamp"; then return 0; fi
    done
    return 1
}

if [ ! -x .venv/bin/python ]; then
    python=$(find_python)
    "$python" -m venv .venv
fi
if ! is_installed; then
    echo "installing qcc${extra:+ and its '$extra' extra} into $PWD/.venv …" >&2
    .venv/bin/python -m pip install --quiet --editable ".${extra:+[$extra]}"
    cp pyproject.toml ".venv/.installed${extra:+-$extra}"
fi
