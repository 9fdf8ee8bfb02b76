"""Run one plan after another fast: fused convolutions on a CPU, masks and a CUDA graph on a GPU."""
