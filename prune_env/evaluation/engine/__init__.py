"""Run one plan after another fast: fused convolutions on a CPU, masked weights and a CUDA graph on a GPU."""
