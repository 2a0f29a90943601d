#!/usr/bin/env bash
# Collects the wheels that a GPU machine without a network needs, and builds Transformer Engine's torch part for its
# torch; `tools/gpu_wheels.sh --help` says how.  PYTHON names an interpreter of the GPU machine's version.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
python=${PYTHON:-python3}
if ! told=$("$python" -c 'import sys; print(*sys.version_info[:2], sep="."); sys.exit(sys.version_info < (3, 12))' 2>/dev/null); then
  echo "error: $python: is Python ${told:-of no version}, this project needs 3.12; name another: PYTHON=python3.12" >&2
  exit 1
fi
exec "$python" "$root/tools/gpu_wheels.py" "$@"
