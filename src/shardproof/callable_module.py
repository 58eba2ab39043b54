"""Modules that are called like the one function they are named after.

`shardproof.verify` is a module, and also the verb: `shardproof.verify(folder, model)`. Binding a function of the same
name in the package would depend on import order; giving the module's class a `__call__` does not.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


def make_callable(name: str, function: Callable[..., Any]) -> None:
    """Make `sys.modules[name]` call `function`."""

    class CallableModule(ModuleType):
        __call__ = staticmethod(function)
        __doc__ = function.__doc__

    module = sys.modules[name]
    text = module.__doc__
    module.__class__ = CallableModule
    module.__doc__ = text
