"""MXFP4 Mixture-of-Experts weights, from checkpoint to kernel: planned, packed, proven, run."""

__version__ = "0.1.0"
