"""Native parts of the build; everything else is in pyproject.toml.

Each extension is plain C without Python.h: a shared library that ctypes loads, so one abi3 wheel serves every
Python. A machine without a compiler installs the package all the same and uses the NumPy and torch paths.
"""

from pathlib import Path

from setuptools import Extension, setup

CPU = Path("src/shardproof/kernels/cpu")
PACK = Path("src/shardproof/pack/native")
EXTENSIONS: list[Extension] = [
    Extension(
        "shardproof.pack.native._engine",
        sources=[str(path) for path in sorted(PACK.glob("*.c"))],
        depends=[str(path) for path in sorted(PACK.glob("*.h"))],
        extra_compile_args=["-O3", "-std=gnu11", "-pthread"],
        extra_link_args=["-pthread"],
        py_limited_api=True,
        optional=True,
    ),
    Extension(
        "shardproof.kernels.cpu._moe",
        sources=[str(path) for path in sorted(CPU.glob("*.c"))],
        depends=[str(path) for path in sorted(CPU.glob("*.h"))],
        # No contraction: a multiply-add is fused exactly where the source says so, in every variant.
        extra_compile_args=[
            *("-O3", "-std=gnu11", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"),
            *("-fvisibility=hidden", "-pthread", "-g0"),
        ],
        extra_link_args=["-pthread"],
        libraries=["m"],
        py_limited_api=True,
        optional=True,
    ),
]

setup(ext_modules=EXTENSIONS, options={"bdist_wheel": {"py_limited_api": "cp311"}})
