"""Packing onto a device: raw slices go up, and are permuted there by the same declarations."""
