"""Every supported layer and functional form: the graph computes what the module computes."""

import copy

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from lipray.model.evaluate import evaluate
from lipray.model.importer import import_module
from lipray.model.network import (
    Activation,
    AdaptiveAvgPool,
    AvgPool,
    ChannelAffine,
    Conv,
    Dense,
    MaxPool,
    Pad,
    Reshape,
    Softmax,
    Sum,
)

IMAGE = (4, 7, 6)
SERIES = (4, 9)
VECTOR = (5,)


class Functional(nn.Module):
    """A module whose forward is the given function; tensors become parameters or buffers."""

    def __init__(self, function, **members):
        super().__init__()
        self.function = function
        for name, value in members.items():
            if isinstance(value, torch.Tensor):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def forward(self, x):
        return self.function(self, x)


def fn(function, **members):
    return Functional(lambda _, x: function(x), **members)


def rand(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def normed(module):
    """Batch norm with statistics that are not the initial ones."""
    generator = torch.Generator().manual_seed(4)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5 * ("var" in name))
    return module


def check(module, shape, *, seed=0):
    """Import, then compare on inputs that the importer has not seen; the module must be as it was."""
    module.eval()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    network = import_module(module, shape)
    after = module.state_dict()
    assert before.keys() == after.keys()
    assert all(v.dtype == after[k].dtype and torch.equal(v, after[k]) for k, v in before.items())
    x = torch.randn(5, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3
    with torch.no_grad():
        expected = copy.deepcopy(module).double()(x)
        got = evaluate(network, x)
    assert tuple(got.shape) == (5, *network.output_shape)
    assert got.numel() == expected.numel()
    torch.testing.assert_close(got.reshape(5, -1), expected.reshape(5, -1), rtol=1e-10, atol=1e-10)
    for index, node in enumerate(network.nodes):
        assert all(i < index for i in node.inputs)
    assert len({node.name for node in network.nodes}) == len(network.nodes)
    return network


def kinds(network):
    return [type(node.op) for node in network.nodes[1:]]


LAYERS = {
    "conv2d": (nn.Conv2d(4, 3, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)), IMAGE, [Conv]),
    "conv2d-groups": (nn.Conv2d(4, 8, 3, groups=4, bias=False), IMAGE, [Conv]),
    "conv2d-same-even": (nn.Conv2d(4, 3, (2, 4), padding="same", dilation=(3, 1)), IMAGE, [Conv]),
    "conv2d-valid": (nn.Conv2d(4, 3, 3, padding="valid"), IMAGE, [Conv]),
    "conv1d": (nn.Conv1d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2), SERIES, [Conv]),
    "conv1d-same": (nn.Conv1d(4, 6, 4, padding="same"), SERIES, [Conv]),
    "linear": (nn.Linear(5, 3), VECTOR, [Dense]),
    "linear-last-axis": (nn.Linear(6, 2), IMAGE, [Dense]),
    "batchnorm2d": (normed(nn.BatchNorm2d(4)), IMAGE, [ChannelAffine]),
    "batchnorm1d-vector": (normed(nn.BatchNorm1d(5)), VECTOR, [ChannelAffine]),
    "batchnorm1d-series": (normed(nn.BatchNorm1d(4, affine=False)), SERIES, [ChannelAffine]),
    "relu": (nn.ReLU(), IMAGE, [Activation]),
    "leakyrelu": (nn.LeakyReLU(-0.3), IMAGE, [Activation]),
    "prelu-shared": (nn.PReLU(), IMAGE, [Activation]),
    "prelu-channels": (normed(nn.PReLU(4)), IMAGE, [Activation]),
    "prelu-vector": (normed(nn.PReLU(5)), VECTOR, [Activation]),
    "rrelu": (nn.RReLU(0.1, 0.7), IMAGE, [Activation]),
    "elu": (nn.ELU(1.7), IMAGE, [Activation]),
    "selu": (nn.SELU(), IMAGE, [Activation]),
    "celu": (nn.CELU(0.6), IMAGE, [Activation]),
    "silu": (nn.SiLU(), IMAGE, [Activation]),
    "gelu": (nn.GELU(), IMAGE, [Activation]),
    "gelu-tanh": (nn.GELU("tanh"), IMAGE, [Activation]),
    "tanh": (nn.Tanh(), IMAGE, [Activation]),
    "sigmoid": (nn.Sigmoid(), IMAGE, [Activation]),
    "logsigmoid": (nn.LogSigmoid(), IMAGE, [Activation]),
    "softplus": (nn.Softplus(0.7, 25), IMAGE, [Activation]),
    "hardtanh": (nn.Hardtanh(-0.5, 2.0), IMAGE, [Activation]),
    "relu6": (nn.ReLU6(), IMAGE, [Activation]),
    "hardswish": (nn.Hardswish(), IMAGE, [Activation]),
    "hardsigmoid": (nn.Hardsigmoid(), IMAGE, [Activation]),
    "mish": (nn.Mish(), IMAGE, [Activation]),
    "threshold": (nn.Threshold(0.25, 0.25), IMAGE, [Activation]),
    "tanhshrink": (nn.Tanhshrink(), IMAGE, [Activation, Sum]),
    "softmax": (nn.Softmax(dim=1), VECTOR, [Softmax]),
    "logsoftmax": (nn.LogSoftmax(dim=-1), VECTOR, [Softmax]),
    "avgpool2d": (nn.AvgPool2d(2), IMAGE, [AvgPool]),
    "avgpool2d-ceil": (nn.AvgPool2d(3, 2, padding=1, ceil_mode=True), IMAGE, [AvgPool]),
    "avgpool2d-exclude": (nn.AvgPool2d((3, 2), 2, (1, 1), ceil_mode=True, count_include_pad=False), IMAGE, [AvgPool]),
    "avgpool2d-divisor": (nn.AvgPool2d(2, divisor_override=3), IMAGE, [AvgPool]),
    "avgpool1d": (nn.AvgPool1d(4, 3, 2, ceil_mode=True, count_include_pad=False), SERIES, [AvgPool]),
    "maxpool2d-overlap": (nn.MaxPool2d(3, 2, 1), IMAGE, [MaxPool]),
    "maxpool2d-ceil": (nn.MaxPool2d((2, 3), 2, (1, 0), dilation=(2, 1), ceil_mode=True), IMAGE, [MaxPool]),
    "maxpool1d": (nn.MaxPool1d(3, 2, 1, ceil_mode=True), SERIES, [MaxPool]),
    "maxpool1d-unbatched": (nn.MaxPool1d(2), VECTOR, [Reshape, MaxPool, Reshape]),
    "adaptive-global": (nn.AdaptiveAvgPool2d(1), IMAGE, [AvgPool]),
    "adaptive-divides": (nn.AdaptiveAvgPool2d((7, 3)), IMAGE, [AvgPool]),
    "adaptive-uneven": (nn.AdaptiveAvgPool2d((3, None)), IMAGE, [AdaptiveAvgPool]),
    "adaptive-larger": (nn.AdaptiveAvgPool2d((9, 9)), IMAGE, [AdaptiveAvgPool]),
    "adaptive-1d": (nn.AdaptiveAvgPool1d(4), SERIES, [AdaptiveAvgPool]),
    "adaptive-same": (nn.Sequential(nn.AdaptiveAvgPool2d((7, 6)), nn.ReLU()), IMAGE, [Activation]),
    "adaptivemax": (nn.AdaptiveMaxPool2d((1, 2)), IMAGE, [MaxPool]),
    "adaptivemax-1d": (nn.AdaptiveMaxPool1d(3), SERIES, [MaxPool]),
    "zeropad2d": (nn.ZeroPad2d((1, 2, -1, 3)), IMAGE, [Pad]),
    "zeropad1d": (nn.ZeroPad1d((2, -3)), SERIES, [Pad]),
    "constantpad2d": (nn.ConstantPad2d((1, 0, 2, 0), 1.5), IMAGE, [Pad, Reshape, ChannelAffine, Reshape]),
    "flatten": (nn.Flatten(), IMAGE, [Reshape]),
    "unflatten": (nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Flatten(2)), IMAGE, [Reshape, Reshape]),
    "dropout": (nn.Sequential(nn.Dropout(), nn.Dropout2d(), nn.Identity(), nn.AlphaDropout()), IMAGE, []),
    "identity": (nn.Identity(), IMAGE, []),
}


@pytest.mark.parametrize("case", LAYERS)
def test_layer(case):
    module, shape, expected = LAYERS[case]
    assert kinds(check(module, shape)) == expected


@pytest.mark.parametrize(("divisor", "expected"), [(3.0, [ChannelAffine]), (4.0, [Sum]), (-0.5, [Sum])])
def test_a_quotient_is_known_to_be_rounded(divisor, expected):
    """1/3 is not a number of float64; the sector form allows for that in a ``ChannelAffine`` and not in a sum."""
    assert kinds(check(fn(lambda x: x / divisor), IMAGE)) == expected


FORMS = {
    "F.relu": (fn(F.relu), IMAGE),
    "torch.relu": (fn(torch.relu), IMAGE),
    "x.relu": (fn(lambda x: x.relu()), IMAGE),
    "relu_": (fn(lambda x: F.relu_(x * 2)), IMAGE),
    "inplace-on-view": (fn(lambda x: [y := x * 1.5, y.view(y.size(0), -1).relu_(), y][-1]), SERIES),
    "clamps": (fn(lambda x: x.clamp(min=-0.5).clamp(max=1).clamp(-0.2, 0.3) + torch.clamp_min(x, 0)), IMAGE),
    "abs-neg": (fn(lambda x: -x.abs()), IMAGE),
    "flatten": (fn(lambda x: torch.flatten(x, 1)), IMAGE),
    "view": (fn(lambda x: x.view(x.size(0), -1)), IMAGE),
    "reshape": (fn(lambda x: x.reshape(-1, 7, 24).reshape(x.shape[0], 6, 28)), IMAGE),
    "squeeze": (fn(lambda x: x.mean((2, 3), keepdim=True).squeeze(-1).squeeze(2)), IMAGE),
    "unsqueeze": (fn(lambda x: F.avg_pool2d(x.unsqueeze(1), 2)), SERIES),
    "transpose-unit": (fn(lambda x: x[:, :1].transpose(1, 2).permute(0, 3, 1, 2)[:, :1].mT), (1, 1, 6)),
    "permute-unit": (fn(lambda x: x.mean((2, 3), keepdim=True).permute(0, 2, 3, 1)), IMAGE),
    "channels-last": (fn(lambda x: x.permute(0, 2, 3, 1).flatten(1)), IMAGE),
    "transpose": (fn(lambda x: x.transpose(1, 2)), SERIES),
    "channel-shuffle": (fn(lambda x: x.view(-1, 2, 2, 7, 6).transpose(1, 2).reshape(-1, 4, 7, 6)), IMAGE),
    "channel-shuffle-1d": (fn(lambda x: x.view(-1, 2, 2, 9).transpose(1, 2).reshape(-1, 4, 9)), SERIES),
    "mean": (fn(lambda x: x.mean((2, 3))), IMAGE),
    "mean-negative": (fn(lambda x: x.mean([-1, -2], keepdim=True)), IMAGE),
    "mean-height": (fn(lambda x: x.mean(2)), IMAGE),
    "mean-channels": (fn(lambda x: x.mean(1)), IMAGE),
    "mean-vector": (fn(lambda x: x - x.mean(1, keepdim=True)), VECTOR),
    "centre-map": (fn(lambda x: x - x.mean((2, 3), keepdim=True)), IMAGE),
    "centre-channels": (fn(lambda x: x - x.mean(1, keepdim=True)), IMAGE),
    "sum": (fn(lambda x: x.sum((1, 2, 3))), IMAGE),
    "amax": (fn(lambda x: x.amax((2, 3))), IMAGE),
    "max-dim": (fn(lambda x: x.max(dim=1)[0] + x.min(1).values), IMAGE),
    "maxout": (fn(lambda x: x.view(x.shape[0], 2, 2, 7, 6).amax(2)), IMAGE),
    "maximum": (fn(lambda x: torch.max(x[:, :2], x[:, 2:])), IMAGE),
    "minimum": (fn(lambda x: torch.minimum(x[:, :2], x[:, 2:])), IMAGE),
    "maximum-constant": (Functional(lambda s, x: torch.maximum(x, s.c) + torch.min(s.c, x), c=rand(4, 1, 1)), IMAGE),
    "residual": (fn(lambda x: F.relu(x) + x), IMAGE),
    "iadd": (fn(lambda x: [y := F.relu(x), y.add_(x, alpha=0.5), y.mul_(3), y][-1]), IMAGE),
    "alpha": (fn(lambda x: torch.add(x, F.relu(x), alpha=-2) - torch.sub(x, x.tanh(), alpha=3)), IMAGE),
    "scalars": (fn(lambda x: (3 * x / 7 - 0.25) * 2.0 + 1), IMAGE),
    "rsub": (fn(lambda x: 1 - x), IMAGE),
    "constant-minus": (Functional(lambda s, x: s.c - x, c=rand(1, 4, 1, 1)), IMAGE),
    "normalise": (Functional(lambda s, x: (x - s.m) / s.s, m=rand(4, 1, 1), s=rand(1, 4, 1, 1).abs() + 0.1), IMAGE),
    "normalise-tensors": (fn(lambda x: (x - torch.tensor([0.485, 1, 2, 3]).view(1, 4, 1, 1)) / 0.229), IMAGE),
    "positional": (Functional(lambda s, x: x * s.a + s.b, a=rand(7, 6), b=rand(1, 4, 7, 6)), IMAGE),
    "last-axis": (Functional(lambda s, x: x * s.a, a=rand(9)), SERIES),
    "square-map": (Functional(lambda s, x: x * s.a, a=rand(4)), (4, 4)),
    "scalar-buffer": (Functional(lambda s, x: x * s.a + s.a, a=rand(1)), IMAGE),
    "enlarging-constant": (Functional(lambda s, x: x + s.a, a=rand(1, 4, 1)), (1, 3)),
    "cat": (fn(lambda x: torch.cat([x, x.relu(), -x], 1)), IMAGE),
    "cat-width": (fn(lambda x: torch.cat([x, x.relu()], dim=-1)), IMAGE),
    "cat-zeros": (fn(lambda x: torch.cat([x, torch.zeros(x.size(0), 2, 7, 6)], 1)), IMAGE),
    "cat-constants": (Functional(lambda s, x: torch.cat([s.a.expand(x.size(0), 1), x], 1), a=rand(1, 1)), VECTOR),
    "cat-new": (fn(lambda x: torch.cat([torch.zeros_like(x), x, x.new_ones(x.shape)], 2)), SERIES),
    "stack": (fn(lambda x: torch.stack([x, x.relu()], 1).amax(1)), IMAGE),
    "chunk": (fn(lambda x: x.chunk(2, 1)[1] + x.split([2, 2], 1)[0]), IMAGE),
    "unbind": (fn(lambda x: x.unbind(1)[1] - x[:, 3]), IMAGE),
    "option-a": (fn(lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 3))), IMAGE),
    "slices": (fn(lambda x: x[:, 1:3, -4:, 1::3]), IMAGE),
    "slice-vector": (fn(lambda x: x[:, 1::2]), VECTOR),
    "slice-rank4": (fn(lambda x: x.view(-1, 2, 2, 7, 6)[:, :, 1]), IMAGE),
    "pad": (fn(lambda x: F.pad(x, (1, -2, 0, 3))), IMAGE),
    "pad-vector": (fn(lambda x: F.pad(x, (1, -2))), VECTOR),
    "pad-value": (fn(lambda x: F.pad(x, (1, 0), value=2.0)), SERIES),
    "pools": (fn(lambda x: F.max_pool2d(F.avg_pool2d(x, 2, 1), 3, 2, 1)), IMAGE),
    "adaptive": (fn(lambda x: F.adaptive_avg_pool2d(x, (1, 1)).flatten(1)), IMAGE),
    "max-indices": (fn(lambda x: F.max_pool2d(x, 2, return_indices=True)[0]), IMAGE),
    "F.conv2d": (Functional(lambda s, x: F.conv2d(x, s.w, s.b, 2, 1), w=rand(3, 4, 3, 3), b=rand(3)), IMAGE),
    "F.linear": (Functional(lambda s, x: F.linear(x, s.w), w=rand(3, 5)), VECTOR),
    "matmul": (Functional(lambda s, x: x @ s.w.t() + s.b, w=rand(3, 5), b=rand(3)), VECTOR),
    "matvec": (Functional(lambda s, x: x @ s.w, w=rand(5)), VECTOR),
    "left-matmul": (Functional(lambda s, x: s.w @ x, w=rand(3, 4)), SERIES),
    "addmm": (Functional(lambda s, x: torch.addmm(s.b, x, s.w, beta=2, alpha=3), w=rand(5, 3), b=rand(3)), VECTOR),
    "weight-standardised": (Functional(lambda s, x: F.conv2d(x, s.w / s.w.norm()), w=rand(3, 4, 2, 2)), IMAGE),
    "F.batch_norm": (Functional(lambda s, x: F.batch_norm(x, s.m, s.v, s.v), m=rand(4), v=rand(4).abs()), IMAGE),
    "F.dropout": (Functional(lambda s, x: F.dropout(x, 0.5, s.training) + x), IMAGE),
    "F.softmax": (fn(lambda x: F.log_softmax(x, 1)), VECTOR),
    "detach": (fn(lambda x: x.detach().contiguous().clone().to(x.dtype)), VECTOR),
}  # fmt: skip


@pytest.mark.parametrize("case", FORMS)
def test_functional_form(case):
    check(*FORMS[case])
