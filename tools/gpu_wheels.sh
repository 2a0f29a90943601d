#!/usr/bin/env bash
# Collects the wheels that a GPU machine without a network needs, and builds Transformer Engine's torch part for its
# torch; `tools/gpu_wheels.sh --help` says how.  PYTHON names an interpreter of the GPU machine's version.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/gpu_python.sh"
exec "$python" "$root/tools/gpu_wheels.py" "$@"
