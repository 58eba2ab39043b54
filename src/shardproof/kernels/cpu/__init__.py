"""The CPU backend's kernels: plain C, chosen for the instruction set at run time."""
