"""Layouts: the byte orders that kernels read, one line each."""

from shardproof.layouts.layout import Layout
from shardproof.layouts.placed import Placed
from shardproof.layouts.registry import catalogue, find, register

__all__ = ["Layout", "Placed", "catalogue", "find", "register"]
