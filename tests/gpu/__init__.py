"""Tests that need an NVIDIA GPU; tools/gpu_check.sh runs them where one is, a file a step.

Without a GPU they are skipped.  IPT_GPU_REHEARSAL=1 runs the same lines on a CPU: local layers in place of Transformer
Engine's, emulated FP8 in place of FP8, no CUDA graphs, a tiny model.  That shows that the tests run, nothing of a GPU.
"""
