"""MinMax, the activation that keeps the norm of its gradient (Anil, Lucas & Grosse 2019, GroupSort of two)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  (torch's own convention)


class MinMax(nn.Module):
    """The first half a of the channels and the second half b become max(a, b) and min(a, b).

    1-Lipschitz: with u = a + b and v = a - b,

        max(a, b) = (u + |v|) / 2,    min(a, b) = (u - |v|) / 2,

    that is H/2 after (u, v) → (u, |v|) after H, where H = [[1, 1], [1, -1]] has norm √2 and H/2 has 1/√2. It is traced
    in that form, from which every bound has the constant 1: as two separate maxima it would cost a factor of √2 or
    more, since nothing would tie the slope of one to that of the other.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The same shape (batch, channels, ...) as x, whose channels must be even in number."""
        channels = x.shape[1]
        if channels % 2:
            raise ValueError(f"MinMax pairs channels, and {channels} is odd")
        if not torch.compiler.is_compiling():
            first, second = x.chunk(2, dim=1)
            return torch.cat([torch.maximum(first, second), torch.minimum(first, second)], dim=1)
        half = torch.eye(channels // 2, dtype=x.dtype, device=x.device)
        mix = torch.cat([torch.cat([half, half], dim=1), torch.cat([half, -half], dim=1)])
        slopes = torch.cat([half.diagonal(), -half.diagonal()])  # of a negative argument: u stays, v is reflected
        if x.dim() == 2:
            return F.linear(F.prelu(F.linear(x, mix), slopes), mix / 2)
        convolve = F.conv2d if x.dim() == 4 else F.conv1d
        kernel = mix.reshape(channels, channels, *[1] * (x.dim() - 2))
        return convolve(F.prelu(convolve(x, kernel), slopes), kernel / 2)
