"""Layers and operations that are refused, and what to tell the user about each.

Not globally Lipschitz, not a fixed function, or not yet expressible in the typed graph: each is refused by
the qualified name of the layer, with the reason and what to do instead. Nothing is ever guessed.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from lipray.errors import UnsupportedLayerError


class MissingRuleError(UnsupportedLayerError):
    """An operation without a rule; in its simplest operations the layer may still have one: (layer, why)."""


EVAL_HINT = "call module.eval()"
_NOT_LIPSCHITZ = "it is not globally Lipschitz"
_BATCH_NORM_HINT = "Use BatchNorm in eval mode instead, or bound the parts before and after it on their own."
CUT_HINT = "Bound the parts before and after it on their own, or replace the layer."
FAINT = (
    "its folded scale has entries below 2^-1022, where float64 keeps too few bits of them",
    "Rescale the layer: such a channel is constant in any arithmetic but the exact one.",
)
"""Why and what to do, where a folded factor underflows."""

_REFUSED_MODULES: tuple[tuple[tuple[type[nn.Module], ...], str, str], ...] = (
    ((nn.LayerNorm, nn.RMSNorm, nn.GroupNorm), f"{_NOT_LIPSCHITZ}: it divides by statistics of its input",
     _BATCH_NORM_HINT),
    ((nn.modules.instancenorm._InstanceNorm,), f"{_NOT_LIPSCHITZ}: it divides by statistics of its input",  # noqa: SLF001
     _BATCH_NORM_HINT),
    ((nn.LocalResponseNorm, nn.CrossMapLRN2d), "it divides one signal by another", CUT_HINT),
    ((nn.MultiheadAttention, nn.Transformer, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer),
     f"dot-product attention multiplies two signals, so {_NOT_LIPSCHITZ}", CUT_HINT),
    ((nn.RNNBase, nn.RNNCellBase), "recurrent layers are not feed-forward", CUT_HINT),
    ((nn.Embedding, nn.EmbeddingBag), "its input is an integer, for which no Lipschitz constant is defined",
     "Bound the network that takes the embedded vectors."),
    ((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), "transposed convolution is not implemented",
     CUT_HINT),
    ((nn.Conv3d,), "three-dimensional convolution is not implemented", CUT_HINT),
    ((nn.Bilinear,), f"it multiplies two signals, so {_NOT_LIPSCHITZ}", CUT_HINT),
    ((nn.GLU,), f"a gate multiplies two signals, so {_NOT_LIPSCHITZ}", CUT_HINT),
)  # fmt: skip

_REFUSED_OPERATIONS: dict[str, tuple[str, str]] = {
    "layer_norm": (f"{_NOT_LIPSCHITZ}: it divides by statistics of its input", _BATCH_NORM_HINT),
    "rms_norm": (f"{_NOT_LIPSCHITZ}: it divides by statistics of its input", _BATCH_NORM_HINT),
    "group_norm": (f"{_NOT_LIPSCHITZ}: it divides by statistics of its input", _BATCH_NORM_HINT),
    "instance_norm": (f"{_NOT_LIPSCHITZ}: it divides by statistics of its input", _BATCH_NORM_HINT),
    "scaled_dot_product_attention": (f"attention multiplies two signals, so {_NOT_LIPSCHITZ}", CUT_HINT),
    "glu": (f"a gate multiplies two signals, so {_NOT_LIPSCHITZ}", CUT_HINT),
    "pow": ("a power of a signal is not globally Lipschitz", CUT_HINT),
    "exp": ("the exponential is not globally Lipschitz", CUT_HINT),
    "log": ("the logarithm is not globally Lipschitz", CUT_HINT),
    "sqrt": ("the square root is not globally Lipschitz", CUT_HINT),
    "rsqrt": ("the inverse square root is not globally Lipschitz", CUT_HINT),
    "reciprocal": ("the reciprocal of a signal is not globally Lipschitz", CUT_HINT),
    "sign": ("the sign of a signal jumps, so it is not Lipschitz", CUT_HINT),
    "round": ("rounding jumps, so it is not Lipschitz", CUT_HINT),
    "floor": ("rounding jumps, so it is not Lipschitz", CUT_HINT),
    "where": ("a choice by condition may jump, so it has no known Lipschitz constant", CUT_HINT),
    "item": ("it turns a signal into a Python number (data-dependent control flow)", CUT_HINT),
    "_native_batch_norm_legit_functional": ("BatchNorm uses the statistics of the batch", EVAL_HINT),
    "_native_batch_norm_legit": ("BatchNorm uses the statistics of the batch", EVAL_HINT),
    "cond": ("it branches on a condition (data-dependent control flow)", CUT_HINT),
    "while_loop": ("it loops on a condition (data-dependent control flow)", CUT_HINT),
    "wrap_with_autocast": ("it runs under autocast, which rounds signals", "Remove autocast from forward."),
    "native_dropout": ("dropout is active, so the output is random", f"{EVAL_HINT}, and pass training=self.training."),
    "bernoulli": ("its output is random", f"{EVAL_HINT}, and pass training=self.training to functional dropout."),
    "_to_copy": ("it casts a signal to another type", "Remove the cast, or cast to the type of x."),
}


def refuse_module(path: str, module: nn.Module, *, executed: bool) -> None:
    """Refuse a module by its kind or mode.

    Args:
        path: its qualified name.
        module: the module.
        executed: whether the forward pass reaches it. What is not reached is refused only where copying it
            would already change what it computes.

    Raises:
        UnsupportedLayerError: with the layer, the reason and what to do.
    """
    if not executed:
        # Reading a parametrised weight in training mode runs a step of spectral_norm's power iteration.
        if module.training and hasattr(module, "parametrizations"):
            raise UnsupportedLayerError(path, "a parametrised weight in training mode is not fixed", hint=EVAL_HINT)
        return
    name = type(module).__name__
    if isinstance(module, nn.modules.batchnorm._BatchNorm):  # noqa: SLF001  (the common base has no public name)
        if module.training:
            raise UnsupportedLayerError(path, f"{name} is in training mode", hint=EVAL_HINT)
        if module.running_mean is None or module.running_var is None:
            raise UnsupportedLayerError(
                path, f"{name} has no running statistics, so {_NOT_LIPSCHITZ}", hint="Train it with running statistics."
            )
    if isinstance(module, nn.modules.dropout._DropoutNd | nn.RReLU) and module.training:  # noqa: SLF001
        raise UnsupportedLayerError(path, f"{name} is in training mode, so its output is random", hint=EVAL_HINT)
    for kinds, why, hint in _REFUSED_MODULES:
        if isinstance(module, kinds):
            raise UnsupportedLayerError(path, f"{name}: {why}", hint=hint)


def refuse_operation(path: str, operation: str, target: object, source: str) -> UnsupportedLayerError:
    """The error for an ATen operation without a rule.

    Args:
        path: the qualified name of the layer.
        operation: the operation's name without its overload.
        target: the operation itself.
        source: where it stands in the user's code, or nothing.
    """
    if operation in _REFUSED_OPERATIONS:
        why, hint = _REFUSED_OPERATIONS[operation]
        return UnsupportedLayerError(path, why + source, hint=hint)
    if is_random(target):
        return UnsupportedLayerError(path, f"its output is random{source}", hint=EVAL_HINT)
    return MissingRuleError(path, f"lipray has no rule for the operation {operation!r}{source}", hint=CUT_HINT)


def underflows(folded: np.ndarray, factor: np.ndarray) -> bool:
    """Whether a folded number is too small for the few units of rounding that are allowed for it.

    Args:
        folded: what was worked out.
        factor: where it is zero, so is the exact number.
    """
    return bool(((np.abs(folded) < np.finfo(np.float64).tiny) & (factor != 0.0)).any())


def is_random(target: object) -> bool:
    """Whether an ATen operation draws random numbers."""
    return isinstance(target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in target.tags  # noqa: SLF001
