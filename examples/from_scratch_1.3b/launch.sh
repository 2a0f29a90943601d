#!/usr/bin/env bash
# Submits the 1.3B run: two nodes of 8 H100, over as many time limits as it takes (docs/slurm.md).
#
#   examples/from_scratch_1.3b/launch.sh [section.key=value ...]
#   NODES=8 examples/from_scratch_1.3b/launch.sh [section.key=value ...]    1, 2, 4 or 8: 64 samples a node and micro batch
#
# SBATCH_ARGS holds what your cluster wants besides, such as "--partition=h100 --account=lab".  Without Slurm:
# source environment.sh, then torchrun on every node (README.md).
set -euo pipefail
cd "$(dirname "$0")/../.."
source examples/from_scratch_1.3b/environment.sh

# The step in hand (1.6 s), a validation (16 batches forward, 8 s) and a save must fit into torchrun's patience.  A save
# is 15 s of gathering, then 18.9 GB written and read back: 392 s at 0.1 GB/s (README.md).
export SHUTDOWN_TIMEOUT="${SHUTDOWN_TIMEOUT:-450}"
# shellcheck disable=SC2086 # several words by intention
exec sbatch --nodes="${NODES:-2}" --gpus-per-node=8 --time=08:00:00 --signal=B:USR1@600 --job-name=from_scratch_1.3b \
  ${SBATCH_ARGS:-} tools/launch_slurm.sbatch examples/from_scratch_1.3b/recipe.yaml "$@"
