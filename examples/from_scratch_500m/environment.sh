# Environment of the run; source it before `ipt train` or torchrun, or let launch.sh do it.

# Lets the allocator grow segments instead of leaving holes; long runs with changing shapes fragment otherwise.
export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True

# Seconds NCCL's watchdog waits for a rank that is busy on the host, as in a checkpoint, before it ends the job.
export TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC=1800

# One thread a process on the host: eight ranks with every core each get in one another's way.
export OMP_NUM_THREADS=1

# No rank asks a model hub for anything: the model is made from the recipe's numbers.
export HF_HUB_OFFLINE=1

# CUDA_DEVICE_MAX_CONNECTIONS=1, which the Llama presets have, is for tensor and context parallelism: there are none here.
