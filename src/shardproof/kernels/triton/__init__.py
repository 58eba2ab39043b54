"""The GPU kernels that are portable over NVIDIA and AMD."""
