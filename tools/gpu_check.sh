#!/usr/bin/env bash
# Installs from a folder of wheels on a machine with one NVIDIA GPU and no network, and checks this project there;
# `tools/gpu_check.sh --help` says how.  PYTHON names the interpreter that has torch.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/gpu_python.sh"
exec "$python" "$root/tools/gpu_check.py" "$@"
