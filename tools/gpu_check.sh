#!/usr/bin/env bash
# Installs from a folder of wheels on a machine with one NVIDIA GPU and no network, and checks this project there;
# `tools/gpu_check.sh --help` says how.  PYTHON names the interpreter that has torch.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
python=${PYTHON:-python3}
if ! told=$("$python" -c 'import sys; print(*sys.version_info[:2], sep="."); sys.exit(sys.version_info < (3, 12))' 2>/dev/null); then
  echo "error: $python: is Python ${told:-of no version}, this project needs 3.12; name another: PYTHON=python3.12" >&2
  exit 1
fi
exec "$python" "$root/tools/gpu_check.py" "$@"
