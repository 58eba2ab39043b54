"""The MoE layer on NVIDIA Hopper: CUDA C++ compiled at run time, from weights in the `shardproof_hopper` layout."""
