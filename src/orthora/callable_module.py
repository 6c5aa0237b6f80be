"""Modules that can be called.

`orthora.methods()`, `orthora.train(config)` and `orthora.evaluate(config)` are public functions,
and ``methods/``, ``train/`` and ``evaluate.py`` are where their code lives. Python binds a
submodule to its name in the package whenever it is first imported, so a function of that name
would be lost to whoever imports the submodule. Making the module itself callable gives both, in
any order.
"""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


def make_callable(module: str, function: Callable[..., Any]) -> None:
    """Let a call of the module named ``module`` call ``function``."""

    class CallableModule(ModuleType):
        __doc__ = function.__doc__
        __wrapped__ = staticmethod(function)  # inspect.signature and help() show the function's

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

    sys.modules[module].__class__ = CallableModule
