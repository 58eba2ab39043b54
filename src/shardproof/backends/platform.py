"""Platform: the accelerator and the installed packages, detected or described."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from shardproof.arguments import expect
from shardproof.errors import BackendError

_AS_TEXT = 'give "name=version", one or several'
KINDS = ("cpu", "cuda", "rocm", "xpu")
_ARCH = {
    "cuda": re.compile(r"sm\d{2,3}a?"),
    "rocm": re.compile(r"gfx[0-9a-f]{3,4}"),
    "xpu": re.compile(r"\w+"),
}


@dataclass(frozen=True, slots=True)
class Platform:
    """A place where a kernel runs: `cpu`, `cuda:sm90`, `rocm:gfx950`.

    `packages` maps package names to versions. On a `described` platform a package that is not named is taken
    to be installed in its newest known version; on a detected one it counts only if it is installed here
    (`packages.version_of`).
    """

    kind: str
    arch: str = ""
    packages: Mapping[str, str] = field(default_factory=dict)
    described: bool = False

    def __str__(self) -> str:
        return f"{self.kind}:{self.arch}" if self.arch else self.kind

    @property
    def compute_capability(self) -> int:
        """The number of a CUDA architecture (90 for sm90); 0 elsewhere."""
        return int(re.sub(r"\D", "", self.arch)) if self.kind == "cuda" else 0


def describe(text: str, packages: str | Iterable[str] = ()) -> Platform:
    """Read `cuda:sm90`, `rocm:gfx950` or `cpu`, and packages as `name=version`, one or several.

    Raises BackendError `backend.platform`, ArgumentError.
    """
    kind, _, arch = text.lower().partition(":")
    arch = arch.replace("sm_", "sm")
    if kind not in KINDS or (kind in _ARCH and not _ARCH[kind].fullmatch(arch)) or (kind == "cpu" and arch):
        raise BackendError(
            "backend.platform",
            "cannot read the platform",
            found=text,
            needed="cpu, cuda:sm90, rocm:gfx950, xpu:NAME",
            next_step="write one of these, or leave it out to take this machine",
        )
    return Platform(kind, arch, _read_packages(packages), described=True)


def detect(packages: str | Iterable[str] = ()) -> Platform:
    """The platform of this machine, through torch where it is installed; otherwise `cpu`."""
    named = _read_packages(packages)
    try:
        import torch
    except ImportError:
        return Platform("cpu", packages=named)
    if not torch.cuda.is_available():
        return Platform("cpu", packages=named)
    if torch.version.hip:
        return Platform("rocm", torch.cuda.get_device_properties(0).gcnArchName.split(":")[0], named)
    major, minor = torch.cuda.get_device_capability()
    return Platform("cuda", f"sm{major}{minor}", named)


@cache
def cpu_flags() -> frozenset[str]:
    """Features of this host's processor as Linux names them; empty where it does not say."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return frozenset(flags.partition(":")[2].split())


def _read_packages(packages: str | Iterable[str]) -> dict[str, str]:
    named = {}
    several = [packages] if isinstance(packages, str) else packages
    for each in expect("packages", several, Iterable, _AS_TEXT):  # type: ignore[type-abstract]
        text = expect("a package", each, str, _AS_TEXT)
        name, equals, version = text.partition("=")
        if not (name and equals and re.fullmatch(r"[\w.+\-]+", version)):
            raise BackendError(
                "backend.platform",
                "cannot read a package version",
                found=text,
                needed="NAME=VERSION",
                next_step="for example --with aiter=0.1.15",
            )
        named[name] = version
    return named
