"""Lipschitz-aware training: layers, differentiable bounds, losses, and the loop."""

from lipray.train.penalty import LipschitzPenalty

__all__ = ["LipschitzPenalty"]
