#!/usr/bin/env bash
# Submits the 8B run: one node of 8 H100, over as many time limits as it takes (docs/slurm.md).
#
#   examples/llama3_8b_domain/launch.sh [section.key=value ...]
#
# SBATCH_ARGS holds what your cluster wants besides, such as "--partition=h100 --account=lab".  Without Slurm:
# source environment.sh, then `ipt train examples/llama3_8b_domain/recipe.yaml`.
set -euo pipefail
cd "$(dirname "$0")/../.."
source examples/llama3_8b_domain/environment.sh

# The step in hand (5 s), a validation and a save must fit into torchrun's patience.  A save is 36 s of gathering, then
# 112 GB written and read back: 261 s at 1 GB/s (README.md).
export SHUTDOWN_TIMEOUT="${SHUTDOWN_TIMEOUT:-400}"
# shellcheck disable=SC2086 # several words by intention
exec sbatch --nodes=1 --gpus-per-node=8 --time=08:00:00 --signal=B:USR1@600 --job-name=llama3_8b_domain \
  ${SBATCH_ARGS:-} tools/launch_slurm.sbatch examples/llama3_8b_domain/recipe.yaml "$@"
