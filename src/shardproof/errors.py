"""Every error that shardproof raises, and the exit codes that the command line gives them.

    ShardproofError                 one thing is wrong, and the error says which and what to do
    ├── ArgumentError               what a call was given: values of another kind
    ├── CheckpointError             the files: headers, index, byte ranges
    ├── FormatError                 what the files mean: dialect, names, dtypes, shapes
    ├── PartitionError              how experts and blocks are dealt to ranks
    ├── LayoutError                 what a byte order can hold
    ├── BackendError                which kernel can be used, and why another one cannot
    ├── PackError                   writing packed experts
    ├── PackedError                 reading packed experts
    ├── VerifyError                 proving packed experts
    ├── DiagnoseError               explaining tensors that somebody else laid out
    └── KernelError                 running the layer

A code never changes its meaning; its wording may. `docs/errors.md` explains each code.
"""

from __future__ import annotations

from typing import Any

EXIT_FINE = 0
EXIT_FINDING = 1
EXIT_REFUSED = 2

_FIELDS = ("file", "tensor", "layer", "expert", "rank", "found", "needed")


class ShardproofError(Exception):
    """One thing that is wrong.

    `code` is stable and machine-readable (`"checkpoint.truncated"`); `what` is one sentence;
    the remaining fields say where it is, what was found, what was needed, and the next step.
    """

    exit_code = EXIT_REFUSED

    def __init__(
        self,
        code: str,
        what: str,
        *,
        file: object = None,
        tensor: object = None,
        layer: object = None,
        expert: object = None,
        rank: object = None,
        found: object = None,
        needed: object = None,
        next_step: str | None = None,
    ) -> None:
        self.code = code
        self.what = what
        self.file = file
        self.tensor = tensor
        self.layer = layer
        self.expert = expert
        self.rank = rank
        self.found = found
        self.needed = needed
        self.next_step = next_step
        super().__init__(code, what)

    def fields(self) -> dict[str, str]:
        """The fields that are set, in reading order, as text."""
        named = {name: getattr(self, name) for name in _FIELDS}
        return {name: str(value) for name, value in named.items() if value is not None}

    def to_dict(self) -> dict[str, Any]:
        """The error as JSON-ready data (`--json`)."""
        return {"code": self.code, "what": self.what, **self.fields(), "next_step": self.next_step}

    def __str__(self) -> str:
        lines = [f"[{self.code}] {self.what}"]
        lines += [f"  {name}: {text}" for name, text in self.fields().items()]
        if self.next_step:
            lines.append(f"  next: {self.next_step}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.__dict__.copy()))


def _rebuild(kind: type[ShardproofError], state: dict[str, Any]) -> ShardproofError:
    error = kind(state["code"], state["what"])
    error.__dict__.update(state)
    return error


class ArgumentError(ShardproofError):
    """A call was given a value of another kind, or a number that means nothing there."""


class CheckpointError(ShardproofError):
    """The checkpoint's files cannot be read as what they claim to be."""


class FormatError(ShardproofError):
    """The checkpoint's expert tensors do not form a complete MXFP4 model of one known format."""


class PartitionError(ShardproofError):
    """Experts or blocks cannot be dealt to ranks as asked."""


class LayoutError(ShardproofError):
    """A layout is unknown, or cannot hold this shape or value."""


class BackendError(ShardproofError):
    """A backend is unknown, or cannot run this model on this platform."""


class PackError(ShardproofError):
    """Packed experts cannot be written."""


class PackedError(ShardproofError):
    """A packed folder or file cannot be read as what it claims to be."""


class VerifyError(ShardproofError):
    """Packed experts cannot be proven (for instance against the wrong checkpoint)."""


class DiagnoseError(ShardproofError):
    """Foreign tensors cannot be examined."""


class KernelError(ShardproofError):
    """The layer cannot be run with these inputs."""
