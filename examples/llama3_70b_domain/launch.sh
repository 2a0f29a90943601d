#!/usr/bin/env bash
# Submits the 70B run: 8 nodes of 8 H100, over as many time limits as it takes (docs/slurm.md).
#
#   examples/llama3_70b_domain/launch.sh [section.key=value ...]
#
# SBATCH_ARGS holds what your cluster wants besides, such as "--partition=h100 --account=lab".  In an NGC container:
# CONTAINER_IMAGE=... CONTAINER_MOUNTS=/data:/data (tools/launch_slurm.sbatch lists all variables).
set -euo pipefail
cd "$(dirname "$0")/../.."
source examples/llama3_70b_domain/environment.sh

# A save of 70B takes minutes: the signal's lead and torchrun's patience are longer than a step and a save together.
export SHUTDOWN_TIMEOUT="${SHUTDOWN_TIMEOUT:-1500}"
# shellcheck disable=SC2086 # several words by intention
exec sbatch --nodes=8 --gpus-per-node=8 --time=08:00:00 --signal=B:USR1@1800 --job-name=llama3_70b_domain \
  ${SBATCH_ARGS:-} tools/launch_slurm.sbatch examples/llama3_70b_domain/recipe.yaml "$@"
