#!/usr/bin/env bash
# One table of what works on a GPU, and how fast: `tests/device/run.sh` from a checkout, in at most eight minutes.
#
#   tests/device/run.sh                      in the environment that is active
#   tests/device/run.sh --wheels FOLDER      in a new one of the wheels in FOLDER alone; no network is used
#   tests/device/run.sh --device cpu         a rehearsal: the same rows, on the processor
#
# More words go to tests/device/table.py (--out FILE.json, --only WORD, --limit SECONDS, --jobs N).
# It exits with 0 only if every row passes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

python=python3
if [[ ${1:-} == --wheels ]]; then
    [[ -d ${2:-} ]] || { echo "--wheels ${2:-}: no such folder" >&2; exit 2; }
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    python3 -m venv "$scratch/environment"
    python=$scratch/environment/bin/python
    "$python" -m pip install --quiet --no-index --no-deps --disable-pip-version-check "$2"/*.whl
    shift 2
fi
PYTHONPATH=$PWD "$python" -m tests.device.table "$@"
