"""Differentiable bounds: values of the certificates, gradients of differences, and no graph that is not followed."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import lipray
from lipray.errors import TrainingError
from lipray.partition.subproblem import Settings, Subproblem
from lipray.train import LipschitzPenalty
from lipray.train.bounds import KINDS, Constants, make_bound
from lipray.train.layers import Centre, LinearResidualConv, MinMax, NormalisedHead, OrthogonalLinear
from lipray.train.live import live
from lipray.train.projection import project, scalable
from lipray.verify.product import graph_product

SHAPE = (1, 6, 6)


def cnn(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(3, 4, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 3),
    ).double()


def residual():
    """Layers of a LiResNet but the orthogonal ones: the largest of nearly equal singular values is not smooth."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        Centre(4),
        MinMax(),
        LinearResidualConv(4, 2),
        Centre(4),
        MinMax(),
        nn.Flatten(),
        NormalisedHead(144, 3),
    ).double()


def apart(module):
    """Weights of one sign: one singular value of every layer stands out, and power iterations settle soon."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.abs_()
    return module


NETWORKS = {"cnn": cnn, "residual": residual}


class Normed(nn.Module):
    """Batch norms, a skip, and an average pool."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.conv1, self.bn1 = nn.Conv2d(1, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)
        self.conv2, self.bn2 = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)
        self.fc = nn.Linear(3, 4)
        for bn in (self.bn1, self.bn2):
            bn.running_var.uniform_(0.5, 2.0)

    def forward(self, x):
        x = nn.functional.relu(self.bn1(self.conv1(x)))
        x = nn.functional.relu(x + self.bn2(self.conv2(x)))
        return self.fc(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


def converged(kind, module, steps=150):
    graph = live(module, SHAPE)
    bound = make_bound(kind, graph, steps=steps)
    if hasattr(bound, "refresh"):
        with torch.no_grad():
            bound.refresh(graph.weights(module))
    with torch.no_grad():
        for _ in range(2):  # power iterations are slow where singular values lie close together
            bound(graph.weights(module))
    return graph, bound


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_those_of_differences(kind, name):
    module = apart(NETWORKS[name]())
    graph, bound = converged(kind, module, steps=60)
    value = bound(graph.weights(module))
    parameters = [p for p in module.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(value, parameters, allow_unused=True)
    generator = torch.Generator().manual_seed(3)
    directions = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    slope = sum((g * d).sum().item() for g, d in zip(gradients, directions, strict=True) if g is not None)
    values = []
    with torch.no_grad():
        for sign in (1.0, -1.0, -1.0, 1.0):  # in this order a steady drift of the iterates cancels
            for p, d in zip(parameters, directions, strict=True):
                p.add_(sign * 1e-4 * d)
            values.append(bound(graph.weights(module)).item())
            for p, d in zip(parameters, directions, strict=True):
                p.sub_(sign * 1e-4 * d)
    measured = (values[0] - values[1] - values[2] + values[3]) / 4e-4
    assert slope == pytest.approx(measured, rel=5e-3, abs=1e-4)
    assert getattr(bound, "stale", 0) == 0


def certificate(network, method, iterations):
    from lipray.certify.solve import solve

    return solve(Subproblem("test", network, method, Settings(iterations=iterations, tolerance=1e-3)))


def test_values_are_those_of_the_certificates():
    module = apart(cnn())
    network = live(module, SHAPE).network
    graph, bound = converged("product", module, steps=40)
    assert bound(graph.weights(module)).item() == pytest.approx(certificate(network, "product", None).bound, rel=1e-3)
    graph, bound = converged("closed-form", module, steps=60)
    expected = min(certificate(network, "frequency", 0).bound, certificate(network, "product", None).bound)
    # In space the padding is exact, on a torus it is not: below the certified value, and not by much.
    assert 0.8 * expected <= bound(graph.weights(module)).item() <= expected * (1.0 + 1e-6)
    figures = certificate(network, "product", None).figures
    graph, bound = converged("liplt", module, steps=40)
    assert bound(graph.weights(module)).item() == pytest.approx(figures["liplt"], rel=1e-3)


def test_from_tight_to_loose():
    module = cnn(4)
    values = {}
    for kind in KINDS:
        graph, bound = converged(kind, module, steps=40)
        values[kind] = bound(graph.weights(module)).item()
    attained = lipray.estimate(module, SHAPE, method="product", lower_starts=8, threads=1).lower
    assert attained <= values["optimised"] <= values["closed-form"] * 1.01 <= values["product"] * 1.01
    assert attained <= values["liplt"] <= values["product"] * 1.01
    assert values["optimised"] < 0.95 * values["product"]


def test_batch_norms_skips_and_parametrised_weights_are_followed():
    module = Normed().eval()
    graph, bound = converged("product", module)
    with torch.no_grad():
        before = bound(graph.weights(module)).item()
        assert before == pytest.approx(graph_product(graph.network), rel=0.02)
        module.bn2.weight.mul_(5.0)
        after = bound(graph.weights(module)).item()
    assert after > 1.5 * before
    assert after == pytest.approx(graph_product(live(module, SHAPE).network), rel=0.02)
    normed = nn.Sequential(parametrizations.weight_norm(nn.Conv2d(1, 2, 3)), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2))
    graph, bound = converged("product", normed)
    bound(graph.weights(normed)).backward()
    assert normed[0].parametrizations.weight.original0.grad.abs().sum() > 0.0


def test_weights_that_cannot_be_followed_are_refused():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.raw = nn.Parameter(torch.randn(4, 4))

        def forward(self, x):
            return nn.functional.linear(
                nn.functional.relu(nn.functional.linear(x, self.raw @ self.raw.T)), self.raw.exp()
            )

    with pytest.raises(TrainingError, match="cannot be followed") as fault:
        live(Odd(), (4,))
    assert "property `weight`" in fault.value.hint


def test_a_max_pool_has_no_multipliers_and_a_skip_no_liplt():
    pooled = nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 2))
    with pytest.raises(TrainingError, match="MaxPool"):
        make_bound("closed-form", live(pooled, SHAPE))
    with pytest.raises(TrainingError, match="does not follow"):
        make_bound("liplt", live(Normed().eval(), SHAPE))
    with pytest.raises(TrainingError, match="there is no such bound"):
        make_bound("magic", live(pooled, SHAPE))


def test_a_network_without_a_dense_end_has_no_margins():
    with pytest.raises(TrainingError, match="no dense layer"):
        Constants(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()), SHAPE)


def test_margins_constants_bound_the_margins():
    module = cnn(5)
    constants = Constants(module, SHAPE, "product", steps=100)
    K = constants(module)
    assert K.shape == (3, 3)
    torch.testing.assert_close(K.diagonal(), torch.zeros(3, dtype=K.dtype))
    pairs = lipray.estimate(module, SHAPE, pairs=[(0, 1), (0, 2), (1, 2)], method="product", lower_starts=8, threads=1)
    assert pairs.lower <= torch.linalg.vector_norm(torch.stack([K[0, 1], K[0, 2], K[1, 2]])).item()
    K.sum().backward()
    assert module[0].weight.grad.abs().sum() > 0.0
    assert module[5].weight.grad.abs().sum() > 0.0


def test_multipliers_that_are_no_longer_feasible_give_way_to_the_product():
    module = cnn(6)
    graph, bound = converged("optimised", module)
    with torch.no_grad():
        module[2].weight.mul_(50.0)
        value = bound(graph.weights(module)).item()
    assert value == pytest.approx(certificate(live(module, SHAPE).network, "product", None).bound, rel=3e-2)


@pytest.mark.parametrize("bound", ["product", "optimised"])
def test_a_penalty_makes_the_certified_constant_smaller(bound):
    module = cnn(7)
    penalty = LipschitzPenalty(module, SHAPE, bound=bound, iterations=20)
    before = lipray.estimate(module, SHAPE, method="product", lower_starts=0, threads=1).upper
    optimiser = torch.optim.SGD(module.parameters(), lr=0.005)
    for _ in range(30):
        optimiser.zero_grad()
        penalty().backward()
        optimiser.step()
    after = lipray.estimate(module, SHAPE, method="product", lower_starts=0, threads=1).upper
    assert after < 0.8 * before


def test_a_projection_reaches_its_limit_and_leaves_what_is_below():
    module = cnn(8)
    graph, bound = converged("product", module)
    weights = scalable(module, graph)
    assert weights == ["0.weight", "2.weight", "5.weight"]
    factor = project(module, lambda: bound(graph.weights(module)), 0.5, weights)
    assert 0.0 < factor < 1.0
    assert bound(graph.weights(module)).item() == pytest.approx(0.5, rel=2e-3)
    assert project(module, lambda: bound(graph.weights(module)), 0.6, weights) == 1.0


def test_a_projection_is_repeated_where_a_skip_leaves_the_constant_too_large():
    class Skips(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.inner, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x):
            x = self.first(x)
            return self.last(torch.relu(x + self.inner(torch.relu(x))))

    torch.manual_seed(3)
    module = Skips()
    graph = live(module, (6,))
    bound = make_bound("product", graph, steps=5)
    for _ in range(20):
        bound(graph.weights(module))
    once = copy.deepcopy(module)
    value = bound(graph.weights(module)).item()
    with torch.no_grad():
        for parameter in (once.first.weight, once.inner.weight, once.last.weight):
            parameter.mul_(0.1 ** (1 / 3))
    assert bound(graph.weights(once)).item() > 1.2 * value / 10  # one scaling is not enough
    project(module, lambda: bound(graph.weights(module)), value / 10, scalable(module, graph))
    assert bound(graph.weights(module)).item() <= value / 10 * (1 + 1e-3)


def test_what_cannot_be_scaled_is_refused():
    normed = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))
    with pytest.raises(TrainingError, match="normalises what is scaled"):
        scalable(normed, live(normed, (1, 6, 6)))
    orthogonal = nn.Sequential(OrthogonalLinear(6, 6), nn.ReLU(), OrthogonalLinear(6, 3))
    with pytest.raises(TrainingError, match="no layer whose weight is a parameter"):
        scalable(orthogonal, live(orthogonal, (6,)))
