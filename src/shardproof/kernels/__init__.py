"""What computes: the reference (the judge), the CPU kernels, the Triton kernels."""
