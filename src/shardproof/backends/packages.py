"""Packages that carry kernels: under which names they are installed, and which versions are known here.

A layout holds for the versions that it was read at. An installed version that is not listed is refused by name;
naming one that is (`--with aiter=0.1.20`) says that the byte orders have not changed since.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import metadata
from typing import Literal, TypeAlias

from shardproof.backends.platform import Platform

Origin: TypeAlias = Literal["named", "assumed", "installed", "carried", "missing"]

_VERSION = re.compile(
    r"v?(?P<release>\d+(?:\.\d+)*)(?:[.\-_]?(?P<pre>a|b|rc)\d*)?(?:[.\-_]?post(?P<post>\d+))?"
    r"(?P<dev>[.\-_]?dev\d*)?(?:\+.*)?"
)


@dataclass(frozen=True, kw_only=True)
class Package:
    """One package.

    distributions  names under which it is installed (another package may own the module's own name)
    known          releases that the declarations were read at, oldest first; empty where there are no releases
    carriers       packages whose wheel contains it, in generation `carried`
    source         what the list rests on
    """

    distributions: tuple[str, ...]
    source: str
    known: tuple[str, ...] = ()
    carriers: tuple[str, ...] = ()
    carried: str = ""

    @property
    def newest(self) -> str:
        """The newest known version; empty where there are no releases."""
        return self.known[-1] if self.known else ""

    def knows(self, version: str) -> bool:
        """Whether a version belongs to a known release (its post-releases and local builds count)."""
        release = _release(version)
        return not self.known or any(release[: len(r)] == r for r in map(_release, self.known))


PACKAGES: dict[str, Package] = {
    "aiter": Package(
        distributions=("amd-aiter",),
        known=(
            *("0.1.12", "0.1.13", "0.1.14", "0.1.15", "0.1.16", "0.1.17", "0.1.18", "0.1.19"),
            "0.1.20.post1",
        ),
        source="tags v0.1.12 to v0.1.20.post1 of ROCm/aiter (April to August 2026), each read for its symbols",
    ),
    "triton_kernels": Package(
        distributions=("triton_kernels", "tokenspeed-triton-kernels"),
        known=("1.0.0.post20260510", "3.5.1", "3.6", "3.8"),
        carriers=("vllm",),
        carried="3.5.1",
        source="the generations that vLLM 0.33 accepts, and tokenspeed-triton-kernels 1.0.0.post20260510",
    ),
    "vllm": Package(distributions=("vllm",), known=("0.33",), source="vLLM 0.33.0"),
    "flashinfer": Package(distributions=("flashinfer-python",), known=("0.7.2",), source="FlashInfer 0.7.2.post1"),
    "deep_gemm": Package(
        distributions=("deep_gemm",),
        carriers=("vllm",),
        source="DeepGEMM 54e2261 (2026-06-23) and the copy in vLLM 0.33.0; no version numbers were compared",
    ),
    "humming": Package(distributions=("humming-kernels",), known=("0.1.19",), source="humming-kernels 0.1.19"),
    "b12x": Package(distributions=("b12x",), known=("1.5",), source="package b12x 1.5.1, not read in detail"),
    "amd-quark": Package(distributions=("amd-quark",), known=("0.13",), source="amd-quark 0.13"),
    "torch": Package(distributions=("torch",), source="any version from 2.5 on"),
}


def version_of(package: str, platform: Platform) -> tuple[str | None, Origin]:
    """The version of a package on a platform, and where that is known from; None where it is missing.

    A described platform has each package in its newest known version unless it is named.
    """
    info = PACKAGES[package]
    for name in (package, *info.distributions):
        if name in platform.packages:
            return platform.packages[name], "named"
    carrier = next((c for c in info.carriers if c in platform.packages), None)
    if carrier:
        return info.carried, "carried"
    if platform.described:
        return info.newest, "assumed"
    for name in info.distributions:
        found = _installed(name)
        if found:
            return found, "installed"
    if any(_installed(name) for carrier in info.carriers for name in PACKAGES[carrier].distributions):
        return info.carried, "carried"
    return None, "missing"


def order(version: str) -> tuple[tuple[int, ...], int, int, int]:
    """A key that sorts versions as PEP 440 does (development < candidate < release < post-release).

    Text that is no version sorts below every version.
    """
    match = _VERSION.fullmatch(version.strip().lower())
    if match is None:
        return ((), 0, 0, 0)
    numbers = [int(n) for n in match["release"].split(".")]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    post = int(match["post"] or -1)
    stage = -1 if match["pre"] else 0
    if match["dev"] and post < 0 and not match["pre"]:
        stage = -2
    return (tuple(numbers), stage, post, 0 if match["dev"] else 1)


def _release(version: str) -> tuple[int, ...]:
    match = _VERSION.fullmatch(version.strip().lower())
    return tuple(int(n) for n in match["release"].split(".")) if match else ()


def _installed(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
