"""The MoE layer on NVIDIA Hopper: CUDA C++ compiled at run time, weights in an order of its own."""
