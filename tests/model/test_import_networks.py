"""Whole networks: random ones, shared and parametrised weights, stored types, and what must not change."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune

from lipray.errors import ModelError
from lipray.model.evaluate import evaluate
from lipray.model.importer import import_module
from lipray.model.network import Activation, ChannelAffine, Conv, Dense, Sum


def compare(module, shape, network, *, tolerance=1e-10):
    x = torch.randn(4, *shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64) * 2
    with torch.no_grad():
        expected = copy.deepcopy(module).double()(x.clone())
        got = evaluate(network, x)
    torch.testing.assert_close(got.reshape(4, -1), expected.reshape(4, -1), rtol=tolerance, atol=tolerance)


def shake(module, seed):
    """Batch norm statistics and affine parameters away from their initial values."""
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            for name in ("running_mean", "running_var", "weight", "bias"):
                getattr(part, name).data.copy_(torch.rand(part.num_features, generator=generator) + 0.3)
    return module.eval()


ACTIVATIONS = [nn.ReLU, nn.PReLU, nn.SiLU, nn.Softplus, nn.Hardswish, lambda: nn.ReLU(inplace=True)]


class Residual(nn.Module):
    """A block in one of several styles of writing the same things."""

    def __init__(self, channels, style, make):
        super().__init__()
        self.style = style
        stride = 2 if style == "strided" else 1
        self.convs = nn.ModuleList(
            [
                nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False),
                nn.Conv2d(channels, channels, 3, padding="same", groups=channels),
            ]
        )
        self.norm = nn.BatchNorm2d(channels)
        self.act = make()
        self.short = nn.Conv2d(channels, channels, 1, stride) if stride == 2 else nn.Identity()

    def forward(self, x):
        y = x
        for conv in self.convs:
            y = self.act(self.norm(conv(y)))
        if self.style == "inplace":
            y += x
            return y.relu_()
        if self.style == "concat":
            return torch.cat([y, x[:, :1]], dim=1)[:, 1:]
        if self.style == "scaled":
            return torch.add(0.5 * y, x, alpha=2) / 3
        return F.leaky_relu(self.short(x) + y, 0.1)


@st.composite
def networks(draw):
    channels = draw(st.integers(1, 3)) * 2
    layers = [nn.Conv2d(2, channels, draw(st.integers(1, 3)), padding=draw(st.integers(0, 1)))]
    for _ in range(draw(st.integers(0, 2))):
        style = draw(st.sampled_from(["plain", "strided", "inplace", "concat", "scaled"]))
        layers.append(Residual(channels, style, draw(st.sampled_from(ACTIVATIONS))))
    pool = draw(st.sampled_from(["none", "max", "avg", "global", "uneven", "pad"]))
    layers.append(
        {
            "none": nn.Identity(),
            "max": nn.MaxPool2d(3, 2, 1, ceil_mode=draw(st.booleans())),
            "avg": nn.AvgPool2d(2, 2, 1, ceil_mode=draw(st.booleans()), count_include_pad=draw(st.booleans())),
            "global": nn.AdaptiveAvgPool2d(1),
            "uneven": nn.AdaptiveAvgPool2d(2),
            "pad": nn.ZeroPad2d((draw(st.integers(-1, 2)), 1, 0, draw(st.integers(-1, 2)))),
        }[pool]
    )
    layers += [nn.Dropout(), nn.Flatten(), draw(st.sampled_from(ACTIVATIONS))()]
    return layers, draw(st.integers(6, 8)), draw(st.integers(0, 99))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(networks())
def test_random_networks(case):
    layers, side, seed = case
    torch.manual_seed(seed)
    body = shake(nn.Sequential(*layers), seed)
    with torch.no_grad():
        features = body(torch.zeros(2, 2, side, side)).shape[1]
    module = nn.Sequential(body, nn.Linear(features, 3)).eval()
    network = import_module(module, (2, side, side))
    compare(module, (2, side, side), network)
    assert network.output_shape == (3,)


def test_names_follow_the_module():
    torch.manual_seed(0)
    module = shake(nn.Sequential(Residual(2, "plain", nn.ReLU), nn.Flatten()), 0)
    network = import_module(module, (2, 4, 4))
    names = [node.name for node in network.nodes]
    assert names == [
        "input",
        "0.convs.0",
        "0.norm",
        "0.act",
        "0.convs.1",
        "0.norm_1",
        "0.act_1",
        "0.add",
        "0.leaky_relu",
        "1",
    ]
    norms = [node.op for node in network.nodes if isinstance(node.op, ChannelAffine)]
    assert norms[0] == norms[1] == ChannelAffine("0.norm.scale", "0.norm.shift")
    assert network.nodes[7].op == Sum((1.0, 1.0))
    assert network.nodes[8].op.lower == (0.1,)


def test_batch_norm_is_folded_in_float64():
    module = shake(nn.Sequential(nn.BatchNorm2d(3)), 5)
    network = import_module(module, (3, 2, 2))
    norm = module[0]
    scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    assert np.array_equal(network.weights["0.scale"], scale.detach().numpy())
    shift = norm.bias.double() - norm.running_mean.double() * scale
    assert np.array_equal(network.weights["0.shift"], shift.detach().numpy())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_stored_types_are_exact(dtype):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2)).to(dtype)
    network = import_module(module, (1, 4, 4))
    wanted = {torch.float64: np.float64, torch.float16: np.float16}.get(dtype, np.float32)
    for key, tensor in module.state_dict().items():
        assert network.weights[key].dtype == wanted
        assert np.array_equal(network.weights[key].astype(np.float64), tensor.double().numpy())
    assert all(parameter.dtype is dtype for parameter in module.parameters())
    compare(module, (1, 4, 4), network)


def test_weights_are_copies():
    module = nn.Linear(3, 2)
    network = import_module(module, (3,))
    before = network.weights["weight"].copy()
    with torch.no_grad():
        module.weight.zero_()
    assert np.array_equal(network.weights["weight"], before)


class Tied(nn.Module):
    """The same layer twice, and the same weight in two layers."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4, bias=False)
        self.b.weight = self.a.weight

    def forward(self, x):
        for _ in range(3):
            x = self.a(x).relu()
        return self.b(x)


def test_tied_and_reused_weights():
    module = Tied().eval()
    network = import_module(module, (4,))
    compare(module, (4,), network)
    dense = [node for node in network.nodes if isinstance(node.op, Dense)]
    assert len(dense) == 4
    assert len({node.op.weight for node in dense[:3]}) == 1
    assert len({node.name for node in dense}) == 4


@pytest.mark.parametrize(
    "wrap",
    [
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.orthogonal,
        nn.utils.parametrizations.spectral_norm,
        nn.utils.spectral_norm,
        pytest.param(
            nn.utils.weight_norm, marks=pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
        ),
    ],
)
def test_parametrised_weights_are_those_in_effect(wrap):
    torch.manual_seed(0)
    layer = wrap(nn.Linear(4, 4))
    module = nn.Sequential(layer, nn.ReLU())
    module(torch.randn(2, 4))  # leaves a weight made by autograd behind, which cannot be copied as it is
    module.eval()
    module(torch.randn(2, 4))
    state = {key: value.clone() for key, value in module.state_dict().items()}
    network = import_module(module, (4,))
    assert network.weights["0.weight"].dtype == np.float32
    assert np.array_equal(network.weights["0.weight"], layer.weight.detach().numpy())
    assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())
    x = torch.randn(5, 4)
    torch.testing.assert_close(evaluate(network, x.double()).float(), module(x).detach())


def test_inplace_first_layer_and_random_state():
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    module = nn.Sequential(nn.ReLU(inplace=True), nn.Flatten())
    network = import_module(module, (2, 2))
    assert torch.equal(torch.rand(3), expected)  # importing draws from generators of its own
    assert isinstance(network.nodes[1].op, Activation)
    x = torch.tensor([[[-1.0, 2], [3, -4]]], dtype=torch.float64)
    assert evaluate(network, x).tolist() == [[0, 2, 3, 0]]


def test_modules_in_loops_with_python_numbers():
    class Pyramid(nn.Module):
        def __init__(self):
            super().__init__()
            self.convs = nn.ModuleList([nn.Conv2d(2, 2, 3, padding=1) for _ in range(3)])

        def forward(self, x):
            outputs = []
            for i, conv in enumerate(self.convs):
                x = F.avg_pool2d(F.relu(conv(x)), 2) if x.shape[-1] % 2 == 0 else conv(x) * (i + 1)
                outputs.append(F.adaptive_avg_pool2d(x, 1).reshape(x.shape[0], -1))
            return torch.cat(outputs, dim=1)

    module = Pyramid().eval()
    network = import_module(module, (2, 8, 6))
    compare(module, (2, 8, 6), network)
    assert network.output_shape == (6,)
    assert sum(isinstance(node.op, Conv) for node in network.nodes) == 3


def test_forward_hooks_are_part_of_the_module():
    module = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    module[0].register_forward_hook(lambda _m, _i, output: output * 2)
    network = import_module(module, (3,))
    compare(module, (3,), network)


def test_unrelated_branches_leave_no_trace():
    class Auxiliary(nn.Module):
        def __init__(self):
            super().__init__()
            self.main = nn.Linear(3, 2)
            self.aux = nn.Linear(3, 5)

        def forward(self, x):
            self.aux(x)
            return self.main(x)

    network = import_module(Auxiliary().eval(), (3,))
    assert [node.name for node in network.nodes] == ["input", "main"]
    assert set(network.weights) == {"main.weight", "main.bias"}


def test_wrapped_modules():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    assert [node.name for node in import_module(torch.compile(module), (3,)).nodes] == ["input", "0", "1"]
    assert [node.name for node in import_module(nn.DataParallel(module), (3,)).nodes] == [
        "input",
        "module.0",
        "module.1",
    ]
    traced = torch.fx.symbolic_trace(module)
    assert import_module(traced, (3,)).content_hash() == import_module(module, (3,)).content_hash()
    for foreign in (torch.jit.trace(module, torch.zeros(1, 3)), "a name"):
        with pytest.raises(ModelError, match=r"TorchScript|of type str"):
            import_module(foreign, (3,))


def test_pruned_weights_are_those_in_effect():
    module = nn.Sequential(prune.l1_unstructured(nn.Linear(4, 4), "weight", 0.5), nn.ReLU())
    network = import_module(module, (4,))
    assert np.count_nonzero(network.weights["0.weight"]) == 8
    assert prune.is_pruned(module)
