"""Native parts of the build; everything else is in pyproject.toml.

Each extension is plain C without Python.h: a shared library that ctypes loads, so one abi3 wheel serves every
Python. A machine without a compiler installs the package all the same and uses the NumPy and torch paths.
"""

from setuptools import Extension, setup

EXTENSIONS: list[Extension] = []

setup(ext_modules=EXTENSIONS)
