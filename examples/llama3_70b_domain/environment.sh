# Environment of the 70B run; source it before torchrun, or name it to the Slurm script (see README.md).

# One hardware queue: kernels start in the order they were launched, which tensor-parallel overlap counts on (up to H100).
export CUDA_DEVICE_MAX_CONNECTIONS=1

# Streaming multiprocessors that Transformer Engine's norms leave free for NCCL while communication overlaps.
export NVTE_FWD_LAYERNORM_SM_MARGIN=16
# The same for the backward pass.
export NVTE_BWD_LAYERNORM_SM_MARGIN=16

# Lets the allocator grow segments instead of leaving holes; long runs with changing shapes fragment otherwise.
export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True

# NVLink SHARP takes GPU memory for its buffers; 70B needs that memory, and its groups of four gain little from it.
export NCCL_NVLS_ENABLE=0

# Seconds NCCL's watchdog waits for a rank that is busy on the host, as in a checkpoint, before it ends the job.
export TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC=1800

# One thread a process on the host: eight ranks with every core each get in one another's way.
export OMP_NUM_THREADS=1

# No rank asks a model hub for anything: the weights lie on the shared file system.
export HF_HUB_OFFLINE=1
