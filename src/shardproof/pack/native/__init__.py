"""The native engine: a shared library of plain C, its structs as ctypes, and the threads that run it."""

from shardproof.pack.native.library import library, why_not
from shardproof.pack.native.run import Fault, Run, run
from shardproof.pack.native.structs import CUT, JOB

__all__ = ["CUT", "JOB", "Fault", "Run", "library", "run", "why_not"]
