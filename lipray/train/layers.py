"""Layers that train well under a Lipschitz constraint, and the plain layers they are deployed as.

After Hu, Zou, Wang, Leino & Fredrikson 2023 ("Unlocking deterministic robustness certification on ImageNet") and Hu,
Leino, Wang & Fredrikson 2024 ("A recipe for improved certifiable robustness"). Every layer has a property ``weight``,
the weight it acts with, differentiable in its parameters, and ``plain()``, torch's own layer with that weight.
"""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  (torch's own convention)

from lipray.model.architectures.minmax import MinMax
from lipray.train.cholesky import orthogonal_rows

__all__ = [
    "Centre",
    "LinearResidualConv",
    "MinMax",
    "NormalisedHead",
    "OrthogonalLinear",
    "OrthogonalPatches",
    "ResidualOrthogonalLinear",
    "plain_bias",
]

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)

MOMENTUM = 0.1
"""Share of a batch in the running mean of ``Centre``."""


class LinearResidualConv(nn.Module):
    """x + γ d^(-1/2) W * x as one convolution, kernel K = I + γ d^(-1/2) W, whose norm is that of K, not 1 + ‖W‖.

    Args:
        channels: of the input and the output.
        depth: d, how many such layers the network has.
        kernel: side of the kernel, odd; zero padding keeps the size of the map.
    """

    identity: torch.Tensor

    def __init__(self, channels: int, depth: int, *, kernel: int = 3) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.empty(channels, channels, kernel, kernel))
        nn.init.kaiming_normal_(self.kernel, nonlinearity="linear")
        self.gain = nn.Parameter(torch.ones(()))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.share = depth**-0.5
        self.padding = kernel // 2
        identity = torch.zeros(channels, channels, kernel, kernel)
        identity[range(channels), range(channels), kernel // 2, kernel // 2] = 1.0
        self.register_buffer("identity", identity, persistent=False)

    @property
    def weight(self) -> torch.Tensor:
        """K (channels, channels, kernel, kernel)."""
        merged: torch.Tensor = self.identity + (self.share * self.gain) * self.kernel
        return merged

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps of the same shape."""
        return F.conv2d(x, self.weight, self.bias, padding=self.padding)

    def plain(self) -> nn.Conv2d:
        """The convolution with kernel K."""
        size = self.kernel.shape
        layer = nn.Conv2d(size[1], size[0], size[2], padding=self.padding)
        return _filled(layer, self.weight, self.bias)


class OrthogonalLinear(nn.Module):
    """A dense layer with orthogonal rows (columns, where it has more outputs than inputs); norm below 1.

    Args:
        inputs: entries of the input.
        outputs: entries of the output.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.empty(outputs, inputs))
        nn.init.orthogonal_(self.raw)
        self.bias = nn.Parameter(torch.zeros(outputs))

    @property
    def weight(self) -> torch.Tensor:
        """W (outputs, inputs)."""
        return orthogonal_rows(self.raw)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, outputs) of (batch, inputs)."""
        return F.linear(x, self.weight, self.bias)

    def plain(self) -> nn.Linear:
        """The dense layer with weight W."""
        return _filled(nn.Linear(self.raw.shape[1], self.raw.shape[0]), self.weight, self.bias)


class ResidualOrthogonalLinear(OrthogonalLinear):
    """An orthogonal dense layer around the identity: the rows of I + γ d^(-1/2) V are orthogonalised.

    Args:
        size: entries of the input and the output.
        depth: d, how many such layers the network has.
    """

    identity: torch.Tensor

    def __init__(self, size: int, depth: int) -> None:
        super().__init__(size, size)
        nn.init.normal_(self.raw, std=size**-0.5)
        self.gain = nn.Parameter(torch.ones(()))
        self.share = depth**-0.5
        self.register_buffer("identity", torch.eye(size), persistent=False)

    @property
    def weight(self) -> torch.Tensor:
        """W (size, size)."""
        return orthogonal_rows(self.identity + (self.share * self.gain) * self.raw)


class OrthogonalPatches(nn.Module):
    """A convolution over patches that do not overlap, its matrix with orthogonal rows; norm below 1.

    As patches are disjoint the norm of the map is that of the matrix (outputs, inputs · patch²).

    Args:
        inputs: channels of the input.
        outputs: channels of the output.
        patch: side and stride of the patches.
    """

    def __init__(self, inputs: int, outputs: int, patch: int) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.empty(outputs, inputs * patch**2))
        nn.init.orthogonal_(self.raw)
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.inputs, self.patch = inputs, patch

    @property
    def weight(self) -> torch.Tensor:
        """(outputs, inputs, patch, patch)."""
        return orthogonal_rows(self.raw).reshape(-1, self.inputs, self.patch, self.patch)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps of a patch-th of the height and width; what fills no patch is left out."""
        return F.conv2d(x, self.weight, self.bias, stride=self.patch)

    def plain(self) -> nn.Conv2d:
        """The convolution."""
        layer = nn.Conv2d(self.inputs, len(self.raw), self.patch, self.patch)
        return _filled(layer, self.weight, self.bias)


class NormalisedHead(nn.Module):
    """Last-layer normalisation: a dense layer whose every row has norm 1 (Singla, Singla & Feizi 2022).

    The layer is not 1-Lipschitz: its constant is the largest singular value of the rows, up to √classes. What the
    normalisation bounds is a margin, ‖w_i - w_j‖ <= 2.

    Args:
        inputs: entries of the input.
        classes: number of outputs.
    """

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.empty(classes, inputs))
        nn.init.kaiming_uniform_(self.raw, a=math.sqrt(5.0))
        self.bias = nn.Parameter(torch.zeros(classes))

    @property
    def weight(self) -> torch.Tensor:
        """Rows of norm 1, (classes, inputs)."""
        rows: torch.Tensor = self.raw / torch.linalg.vector_norm(self.raw, dim=1, keepdim=True).clamp(min=1e-12)
        return rows

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (batch, classes)."""
        return F.linear(x, self.weight, self.bias)

    def plain(self) -> nn.Linear:
        """The dense layer with normalised rows."""
        return _filled(nn.Linear(self.raw.shape[1], self.raw.shape[0]), self.weight, self.bias)


class Centre(nn.Module):
    """Subtract the mean per channel: the batch's in training, a running one in evaluation, where it is a shift.

    A shift has no part in a Lipschitz constant. In training the mean depends on the whole batch; nothing is claimed
    of that.

    Args:
        channels: of the signal, axis 1.
    """

    mean: torch.Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The same shape."""
        if self.training:
            mean = _over_workers(x.mean(dim=[axis for axis in range(x.dim()) if axis != 1]))
            with torch.no_grad():
                self.mean.lerp_(mean.to(self.mean.dtype), MOMENTUM)
        else:
            mean = self.mean
        return x - mean.reshape(-1, *[1] * (x.dim() - 2))


def _over_workers(mean: torch.Tensor) -> torch.Tensor:
    """The mean of the global batch, where it is shared out evenly among workers; with its gradient."""
    distributed = torch.distributed
    if not distributed.is_available() or not distributed.is_initialized() or distributed.get_world_size() == 1:
        return mean
    from torch.distributed.nn import functional

    total: torch.Tensor = functional.all_reduce(mean)  # type: ignore[no-untyped-call]
    return total / distributed.get_world_size()


def plain_bias(layer: nn.Conv2d | nn.Linear, centre: Centre) -> None:
    """Merge a centring that follows a plain layer into its bias."""
    with torch.no_grad():
        assert layer.bias is not None  # noqa: S101 (the layers above all have one)
        layer.bias.sub_(centre.mean)


def _filled(layer: Layer, weight: torch.Tensor, bias: torch.Tensor) -> Layer:
    with torch.no_grad():
        layer.weight.copy_(weight)
        assert layer.bias is not None  # noqa: S101 (made with one)
        layer.bias.copy_(bias)
    return layer.to(weight.device)
