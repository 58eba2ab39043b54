"""Packages that carry kernels: under which names they are installed, and which versions are known here.

A layout holds for the versions that it was read at. An installed version that is not listed is refused by name;
naming one that is (`--with aiter=0.1.20`) says that the byte orders have not changed since.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Literal, TypeAlias

from shardproof.backends.backend import Check, Request
from shardproof.backends.platform import Platform
from shardproof.errors import BackendError

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
    any_version    no byte order hangs on its version
    source         what the list rests on
    """

    distributions: tuple[str, ...]
    source: str
    known: tuple[str, ...] = ()
    carriers: tuple[str, ...] = ()
    carried: str = ""
    any_version: bool = False

    @property
    def newest(self) -> str:
        """The newest known version; empty where there are no releases."""
        return self.known[-1] if self.known else ""

    def knows(self, version: str) -> bool:
        """Whether a version belongs to a known release (its post-releases and local builds count)."""
        return not self.known or any(same_release(version, known) for known in self.known)


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
    "torch": Package(distributions=("torch",), source="any version from 2.5 on", any_version=True),
}


def register(name: str, package: Package) -> None:
    """Add a package: a backend whose package is not listed above calls this in its own file.

    Raises BackendError `backend.duplicate` for another one of that name.
    """
    if PACKAGES.setdefault(name, package) != package:
        raise BackendError("backend.duplicate", "two packages share a name", found=name, next_step="rename one of them")


def check_names(platform: Platform) -> None:
    """Raise BackendError `backend.package` where a package is named that no backend needs."""
    known = {*PACKAGES, *(d for info in PACKAGES.values() for d in info.distributions)}
    for name in platform.packages:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=2, cutoff=0.5)
            raise BackendError(
                "backend.package",
                "no backend needs a package of this name",
                found=f"{name}={platform.packages[name]}",
                needed="one of: " + ", ".join(sorted(known)),
                next_step=f"did you mean {' or '.join(close)}?" if close else "leave it out",
            )


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


def same_release(version: str, release: str) -> bool:
    """Whether a version is of a release: `0.1.15.post1` of `0.1.15`, `3.6.2` of `3.6`."""
    numbers = _release(release)
    return _release(version)[: len(numbers)] == numbers


def _release(version: str) -> tuple[int, ...]:
    match = _VERSION.fullmatch(version.strip().lower())
    return tuple(int(n) for n in match["release"].split(".")) if match else ()


def _installed(distribution: str) -> str | None:
    from importlib import metadata  # loads the parsers of mail and URLs, which most uses never need

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


@dataclass(frozen=True, kw_only=True)
class Needs:
    """The kernel's package is there, in a known version, not older than `since`; `because` names what came then."""

    package: str
    since: str = ""
    because: str = ""

    @property
    def brief(self) -> str:
        """`aiter >= 0.1.15`."""
        return f"{self.package} >= {self.since}" if self.since else self.package

    def check(self, request: Request) -> Check:
        """Condition `package` or `version`, whichever is not met."""
        info = PACKAGES[self.package]
        version, origin = version_of(self.package, request.platform)
        needed = f"{self.brief} ({self.because})" if self.because else self.brief
        if version is None:
            names = " or ".join(info.distributions)
            return Check(
                "package", False, f"{self.package} is not installed", needed,
                f"install {names}, or name it to plan for another machine: --with {self.package}=VERSION",
            )  # fmt: skip
        found = f"{self.package} {version} ({origin})" if version else f"{self.package} ({origin})"
        if not info.knows(version):
            known = ", ".join(info.known)
            return Check(
                "version", False, found, f"{needed}, in a known release: {known}",
                f"its byte orders may differ from those known here; if they do not, say --with {self.package}="
                f"{info.newest}",
            )  # fmt: skip
        old = bool(self.since and version) and order(version) < order(self.since)
        return Check("version", not old, found, needed, f"install {self.package} {self.since} or newer")


@dataclass(frozen=True)
class Release:
    """The package's version belongs to one of these releases, which read the same bytes."""

    package: str
    releases: tuple[str, ...]

    @property
    def brief(self) -> str:
        """`triton_kernels 3.5.1 or 3.6`."""
        return f"{self.package} {' or '.join(self.releases)}"

    def check(self, request: Request) -> Check:
        """Condition `generation`."""
        version = version_of(self.package, request.platform)[0]
        ok = version is not None and any(same_release(version, release) for release in self.releases)
        found = f"{self.package} {version or 'is not installed'}"
        return Check("generation", ok, found, self.brief, f"say --with {self.package}={self.releases[-1]}")
