"""What a path asks of a module before it takes it: who else has put something in its place, and what its code says."""

import inspect
from typing import Any

import torch


def is_hooked(module: torch.nn.Module) -> bool:
    """Return whether something waits for the module to be called."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def is_replaced(module: torch.nn.Module) -> bool:
    """Return whether somebody else has given the module a way of its own, as liger-kernel does with what it knows."""
    own = vars(module).get("forward")
    code = getattr(getattr(own, "__func__", None), "__module__", "")
    return own is not None and not code.startswith(__name__.rpartition(".")[0])


def forward_of(module: torch.nn.Module) -> Any:
    """Return the function that runs when the module is called: a path's, or its class's."""
    own = vars(module).get("forward")
    return type(module).forward if own is None else getattr(own, "__func__", own)


def mark(function: Any, path: str, around: Any = None) -> Any:
    """Return a function that tells `is_marked` of a path, and of those in the function that it goes around."""
    function.paths = {path, *getattr(around, "paths", ())}
    return function


def is_marked(module: torch.nn.Module, path: str) -> bool:
    """Return whether the module takes the path already: it is not to be taken twice."""
    return path in getattr(forward_of(module), "paths", ())


def is_written(function: Any, lines: tuple[str, ...]) -> bool:
    """Return whether all these lines stand in a function's source; code without a source says nothing.

    Args:
        function: of upstream's; None where there is none by its name.
        lines: parts of its text.
    """
    try:
        source = inspect.getsource(function)
    except (OSError, TypeError):
        return False
    return all(line in source for line in lines)
