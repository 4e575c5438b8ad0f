"""Lipschitz-aware training: layers, differentiable bounds, losses, and the loop.

``LipschitzPenalty`` is imported when it is asked for: a configuration is read, and refused, without torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lipray.train.penalty import LipschitzPenalty

__all__ = ["LipschitzPenalty"]


def __getattr__(name: str) -> Any:
    if name == "LipschitzPenalty":
        from lipray.train.penalty import LipschitzPenalty

        return LipschitzPenalty
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
