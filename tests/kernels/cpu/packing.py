"""Canonical bytes -> the CPU layout, written with NumPy transposes: what the catalogue's patterns say."""

from __future__ import annotations

import numpy as np


def pack_w13(weight, scale):
    """Flat buffers from weight uint8 [E, 2I, H/2] (rows [w1; w3]) and scale uint8 [E, 2I, H/32]."""
    experts, rows, half = weight.shape
    digits = weight.reshape(experts, 2, rows // 16, 8, half // 16, 4, 4)  # e g n r k q b
    packed = digits.transpose(0, 2, 4, 5, 1, 3, 6)  # e n k q g r b
    scales = scale.reshape(experts, 2, rows // 16, 8, half // 16).transpose(0, 2, 4, 1, 3)
    return np.ascontiguousarray(packed).reshape(-1), np.ascontiguousarray(scales).reshape(-1)


def pack_w2(weight, scale):
    """Flat buffers from weight uint8 [E, H, I/2] and scale uint8 [E, H, I/32]."""
    experts, rows, half = weight.shape
    digits = weight.reshape(experts, rows // 16, 16, half // 16, 4, 4)  # e n r k q b
    packed = digits.transpose(0, 1, 3, 4, 2, 5)  # e n k q r b
    scales = scale.reshape(experts, rows // 16, 16, half // 16).transpose(0, 1, 3, 2)
    return np.ascontiguousarray(packed).reshape(-1), np.ascontiguousarray(scales).reshape(-1)
