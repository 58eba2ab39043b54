"""Import single files of an inference engine from its unpacked wheel, with stand-ins for what they import."""

from __future__ import annotations

import importlib.abc
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any


class _Absent(type):
    """A class in place of something that is not here: attributes and calls give others like it; it is false."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return absent(name)

    def __call__(cls, *args: Any, **options: Any) -> Any:
        if not cls.__dict__.get("_stand_in"):
            return super().__call__(*args, **options)
        decorated = len(args) == 1 and callable(args[0]) and not isinstance(args[0], _Absent)
        return args[0] if decorated else absent(cls.__name__)

    def __bool__(cls) -> bool:
        return False

    def __iter__(cls) -> Any:
        return iter(())


def absent(name: str) -> Any:
    """A stand-in of that name, good as a class, a function, a decorator or a value that is false."""
    return _Absent(name, (), {"_stand_in": True})


class EngineFiles(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives the engine's own file for the modules of `own`, and an empty module for every other one of its package.

    `given(module, name)` says what an empty module has under a name.
    """

    def __init__(self, package: str, wheel: Path, own: Sequence[str], given: Callable[[str, str], Any]) -> None:
        self.package, self.wheel, self.own, self.given = package, wheel, own, given

    def find_spec(self, name: str, _path: Any = None, _target: Any = None) -> Any:
        """The file, or this loader's empty module; None outside the package."""
        if name.partition(".")[0] != self.package:
            return None
        if name in self.own:
            return importlib.util.spec_from_file_location(name, self.wheel / f"{name.replace('.', '/')}.py")
        return importlib.util.spec_from_loader(name, self, is_package=True)

    def create_module(self, spec: Any) -> ModuleType:
        """An empty module that has whatever is asked of it."""
        module = ModuleType(spec.name)

        def attribute(name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return self.given(spec.name, name)

        module.__getattr__ = attribute  # type: ignore[method-assign]
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run."""
