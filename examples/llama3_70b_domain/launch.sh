#!/usr/bin/env bash
# Submits the 70B run: 8 nodes of 8 H100, over as many time limits as it takes (docs/slurm.md).
#
#   examples/llama3_70b_domain/launch.sh [section.key=value ...]
#   NODES=32 examples/llama3_70b_domain/launch.sh [section.key=value ...]    256 H100, recipe_256.yaml
#
# SBATCH_ARGS holds what your cluster wants besides, such as "--partition=h100 --account=lab".  In an NGC container:
# CONTAINER_IMAGE=... CONTAINER_MOUNTS=/data:/data (tools/launch_slurm.sbatch lists all variables).
set -euo pipefail
cd "$(dirname "$0")/../.."
source examples/llama3_70b_domain/environment.sh

case "${NODES:=8}" in
  8) recipe=examples/llama3_70b_domain/recipe.yaml ;;
  32) recipe=examples/llama3_70b_domain/recipe_256.yaml ;;
  *) echo "error: NODES=$NODES: there are recipes for 8 and 32 nodes of 8 GPUs; use one of them" >&2 && exit 1 ;;
esac

# The step in hand (2.5 s), a validation (8 batches forward, under 20 s) and a save must fit into torchrun's patience.
# A save is 14 s of gathering, then 988 GB written and read back: 1,426 s at 1.4 GB/s, 4 minutes at 10 GB/s (README.md).
# The signal comes 1,800 s before the limit: 300 s more, for a file system that shows the stop file late.
export SHUTDOWN_TIMEOUT="${SHUTDOWN_TIMEOUT:-1500}"
# shellcheck disable=SC2086 # several words by intention
exec sbatch --nodes="$NODES" --gpus-per-node=8 --time=08:00:00 --signal=B:USR1@1800 --job-name=llama3_70b_domain \
  ${SBATCH_ARGS:-} tools/launch_slurm.sbatch "$recipe" "$@"
