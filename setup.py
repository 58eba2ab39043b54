"""Native parts of the build; everything else is in pyproject.toml.

Each extension is plain C without Python.h: a shared library that ctypes loads, so one abi3 wheel serves every
Python. A machine without a compiler installs the package all the same and uses the NumPy and torch paths.
"""

from pathlib import Path

from setuptools import Extension, setup


def plain_c(name: str, folder: str, *flags: str) -> Extension:
    """All C files of a folder as one shared library."""
    sources, headers = (sorted(map(str, Path(folder).glob(kind))) for kind in ("*.c", "*.h"))
    return Extension(
        name, sources, depends=headers, extra_compile_args=["-O3", *flags], py_limited_api=True, optional=True
    )


EXTENSIONS: list[Extension] = [
    plain_c("shardproof.pack.native._engine", "src/shardproof/pack/native"),
]

setup(ext_modules=EXTENSIONS)
