"""LiResNet as it is trained, and as the plain network it becomes."""

from __future__ import annotations

import torch
from torch import nn

from lipray.model.architectures import liresnet as deployed
from lipray.model.architectures.liresnet import Sizes
from lipray.train.layers import (
    Centre,
    LinearResidualConv,
    MinMax,
    NormalisedHead,
    OrthogonalLinear,
    OrthogonalPatches,
    ResidualOrthogonalLinear,
    plain_bias,
)


class LiResNet(nn.Module):
    """``lipray.model.architectures.liresnet.LiResNet`` with the layers of ``lipray.train.layers``.

    Stem; ``depth`` linear residual convolutions; a neck of orthogonal patches; an orthogonal dense layer and
    ``dense_depth`` - 1 residual ones; a head with normalised rows. Convolutions are centred.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        width, depth, dense = sizes.width, sizes.depth, sizes.dense
        self.stem = nn.Conv2d(sizes.channels, width, sizes.kernel, sizes.stride, sizes.kernel // 2)
        self.backbone = nn.ModuleList(LinearResidualConv(width, depth) for _ in range(depth))
        self.centres = nn.ModuleList(Centre(width) for _ in range(depth + 1))
        self.neck = OrthogonalPatches(width, sizes.neck, sizes.patch)
        others = (ResidualOrthogonalLinear(dense, sizes.dense_depth) for _ in range(1, sizes.dense_depth))
        self.dense = nn.ModuleList([OrthogonalLinear(sizes.features, dense), *others])
        self.head = NormalisedHead(dense, sizes.classes)
        self.activation = MinMax()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (batch, classes) of images (batch, channels, side, side)."""
        for convolution, centre in zip([self.stem, *self.backbone], self.centres, strict=True):
            x = self.activation(centre(convolution(x)))
        x = torch.flatten(self.neck(x), 1)
        for layer in self.dense:
            x = self.activation(layer(x))
        logits: torch.Tensor = self.head(x)
        return logits

    @torch.no_grad()
    def plain(self) -> deployed.LiResNet:
        """The network to deploy and to certify, in eval mode: the same function up to rounding."""
        made = deployed.LiResNet(self.sizes)
        made.stem.load_state_dict(self.stem.state_dict())
        own = dict(self.named_modules())
        for name, place in made.named_modules():
            layer = own[name]
            if isinstance(layer, LinearResidualConv | OrthogonalLinear | OrthogonalPatches | NormalisedHead):
                place.load_state_dict(layer.plain().state_dict())
        for place, centre in zip([made.stem, *made.backbone], self.centres, strict=True):
            if isinstance(place, nn.Conv2d) and isinstance(centre, Centre):
                plain_bias(place, centre)
        return made.eval()
