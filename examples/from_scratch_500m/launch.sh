#!/usr/bin/env bash
# Submits the 500M run: one node of 8 H100, over as many time limits as it takes (docs/slurm.md).
#
#   examples/from_scratch_500m/launch.sh [section.key=value ...]
#   NODES=4 examples/from_scratch_500m/launch.sh [section.key=value ...]    1, 2 or 4: 64 samples a node and micro batch
#
# SBATCH_ARGS holds what your cluster wants besides, such as "--partition=h100 --account=lab".  Without Slurm:
# source environment.sh, then `ipt train examples/from_scratch_500m/recipe.yaml`.
set -euo pipefail
cd "$(dirname "$0")/../.."
source examples/from_scratch_500m/environment.sh

# The step in hand (0.6 s), a validation (16 batches forward, 3 s) and a save must fit into torchrun's patience.  A save
# is 5 s of gathering, then 7.2 GB written and read back: 150 s at 0.1 GB/s (README.md).
export SHUTDOWN_TIMEOUT="${SHUTDOWN_TIMEOUT:-200}"
# shellcheck disable=SC2086 # several words by intention
exec sbatch --nodes="${NODES:-1}" --gpus-per-node=8 --time=08:00:00 --signal=B:USR1@300 --job-name=from_scratch_500m \
  ${SBATCH_ARGS:-} tools/launch_slurm.sbatch examples/from_scratch_500m/recipe.yaml "$@"
