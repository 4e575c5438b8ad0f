"""Layers: gradients against differences, norms against lipray's own, and the plain layers they become."""

import numpy as np
import pytest
import torch
from torch import nn

import lipray
from lipray.model.architectures.liresnet import Sizes
from lipray.model.architectures.minmax import MinMax
from lipray.train import layers
from lipray.train.cholesky import Orthogonalise, orthogonal_rows
from lipray.train.liresnet import LiResNet
from lipray.verify.spectral import spectral_norm_bound

SMALL = {"channels": 1, "width": 6, "depth": 2, "kernel": 3, "stride": 1, "patch": 2, "neck": 8, "side": 6, "dense": 10}


def small(seed=0, **more):
    torch.manual_seed(seed)
    return LiResNet(Sizes(**{**SMALL, "dense_depth": 2, **more}))


def certified_norm(module, shape):
    return lipray.estimate(module.eval(), shape, method="product", lower_starts=0, threads=1).upper


@pytest.mark.parametrize("shape", [(1, 1), (3, 3), (3, 7)])
def test_the_derivative_of_the_orthogonalisation(shape):
    torch.manual_seed(1)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(Orthogonalise.apply, (x,), eps=1e-6, atol=1e-7)


@pytest.mark.parametrize("shape", [(3, 7), (7, 3), (5, 5)])
def test_orthogonal_rows_have_singular_values_just_below_one(shape):
    torch.manual_seed(2)
    x = torch.randn(shape, dtype=torch.float64) * 10.0
    values = np.linalg.svd(orthogonal_rows(x).numpy(), compute_uv=False)
    s = np.linalg.svd(x.numpy(), compute_uv=False)
    epsilon = 1e-3 * (x @ x.T if shape[0] <= shape[1] else x.T @ x).diagonal().mean().item()
    np.testing.assert_allclose(values, s / np.sqrt(s**2 + epsilon), rtol=1e-12)
    assert values.max() < 1.0


LAYERS = {
    "orthogonal": (lambda: layers.OrthogonalLinear(12, 8), (12,)),
    "orthogonal, wide": (lambda: layers.OrthogonalLinear(8, 12), (8,)),
    "residual": (lambda: layers.ResidualOrthogonalLinear(9, 4), (9,)),
    "patches": (lambda: layers.OrthogonalPatches(3, 5, 2), (3, 6, 6)),
    "minmax": (MinMax, (4, 5, 5)),
    "minmax, vector": (MinMax, (6,)),
    "centre": (lambda: layers.Centre(3), (3, 4, 4)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_what_is_claimed_to_be_lipschitz_with_one_is(name):
    make, shape = LAYERS[name]
    torch.manual_seed(3)
    layer = make()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter))
    assert certified_norm(layer, shape) <= 1.0 + 1e-6


def test_the_head_is_not_lipschitz_with_one_only_its_margins_are_bounded():
    head = layers.NormalisedHead(5, 4)
    with torch.no_grad():
        head.raw.copy_(torch.ones(4, 5) + 0.01 * torch.randn(4, 5))
    assert certified_norm(head, (5,)) > 1.9  # the tempting wrong version takes 1
    rows = head.weight.detach()
    np.testing.assert_allclose(rows.norm(dim=1), 1.0, atol=1e-6)


def test_two_maxima_traced_one_by_one_would_not_have_the_constant_one():
    class Naive(nn.Module):
        def forward(self, x):
            a, b = x.chunk(2, dim=1)
            return torch.cat([torch.maximum(a, b), torch.minimum(a, b)], dim=1)

    torch.manual_seed(4)
    x = torch.randn(3, 6, 4, 4)
    torch.testing.assert_close(MinMax()(x), Naive()(x))
    assert certified_norm(MinMax(), (6, 4, 4)) <= 1.0 + 1e-9
    assert certified_norm(Naive(), (6, 4, 4)) > 1.4


def test_minmax_wants_pairs():
    with pytest.raises(ValueError, match="3 is odd"):
        MinMax()(torch.zeros(1, 3))


def test_the_norm_of_a_residual_convolution_is_that_of_the_merged_kernel():
    torch.manual_seed(5)
    layer = layers.LinearResidualConv(3, 4)
    with torch.no_grad():
        layer.kernel.copy_(-layer.identity)  # K = (1 - 1/2) I
    torch.testing.assert_close(layer.weight, 0.5 * layer.identity)
    x = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(layer(x), 0.5 * x)
    assert certified_norm(layer, (3, 5, 5)) == pytest.approx(0.5, rel=1e-6)  # and not 1 + 1/2
    matrix = layer.plain().weight.detach().numpy().reshape(3, -1)
    assert spectral_norm_bound(matrix) == pytest.approx(0.5, rel=1e-6)


@pytest.mark.parametrize(
    "layer", [layers.Centre(4), layers.LinearResidualConv(4, 3), layers.OrthogonalPatches(4, 3, 2)]
)
def test_gradients_of_layers_on_maps(layer):
    torch.manual_seed(6)
    layer = layer.double()
    x = torch.randn(2, 4, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))
    for parameter in layer.parameters():
        check_parameter(layer, parameter, x.detach())


@pytest.mark.parametrize(
    "layer",
    [layers.OrthogonalLinear(6, 4), layers.ResidualOrthogonalLinear(6, 2), layers.NormalisedHead(6, 3), MinMax()],
)
def test_gradients_of_layers_on_vectors(layer):
    torch.manual_seed(7)
    layer = layer.double()
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))
    for parameter in layer.parameters():
        check_parameter(layer, parameter, x.detach())


def check_parameter(layer, parameter, x):
    """The gradient of a random functional in one random direction of a parameter, against a central difference."""
    weight = torch.randn_like(layer(x))
    (gradient,) = torch.autograd.grad((layer(x) * weight).sum(), parameter)
    direction = torch.randn_like(parameter)
    values = []
    with torch.no_grad():
        for sign in (1.0, -1.0):
            parameter.add_(sign * 1e-6 * direction)
            values.append((layer(x) * weight).sum().item())
            parameter.sub_(sign * 1e-6 * direction)
    assert (gradient * direction).sum().item() == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-6, abs=1e-7)


def test_centring_is_a_shift_in_evaluation():
    layer = layers.Centre(2)
    x = torch.randn(50, 2, 3, 3) + torch.tensor([3.0, -1.0]).reshape(1, 2, 1, 1)
    torch.testing.assert_close(layer(x).mean(dim=(0, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0.0)
    for _ in range(100):
        layer(x)
    layer.eval()
    torch.testing.assert_close(layer(x + 1.0) - layer(x), torch.ones_like(x))
    torch.testing.assert_close(layer.mean, x.mean(dim=(0, 2, 3)), rtol=1e-3, atol=1e-4)


def test_the_plain_network_is_the_trained_one():
    net = small()
    x = torch.rand(4, 1, 6, 6)
    for _ in range(5):
        net(x)  # moves the running means
    plain = net.plain()
    assert not plain.training
    torch.testing.assert_close(plain(x), net.eval()(x), rtol=1e-4, atol=1e-5)
    assert all(type(part).__module__.startswith(("torch.nn", "lipray.model")) for part in plain.modules())


def test_the_plain_network_loads_by_name(tmp_path):
    from safetensors.torch import save_file

    from lipray.model.load import load_network

    net = small(width=8, depth=3, dense=12, side=8).plain()
    save_file({key: value.contiguous() for key, value in net.state_dict().items()}, tmp_path / "w.safetensors")
    loaded = load_network("liresnet-digits", None, weights=tmp_path / "w.safetensors").network
    assert loaded.output_shape == (10,)
    assert sum(node.name.startswith("backbone") for node in loaded.nodes) == 3
