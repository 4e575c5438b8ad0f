"""Lower bounds: pairs of points whose images lie far apart, found by ascent and stored as witnesses.

The quotient ‖f(x) − f(y)‖₂ / ‖x − y‖₂ of any pair bounds the Lipschitz constant from below. The gradient
of a ReLU network's Jacobian norm is zero almost everywhere, so the search ascends on pairs x = m + d,
y = m − d at a finite separation, where the quotient has a useful gradient; the best pairs are refined by
power iteration on JᵀJ at their points, and the direction found is stretched as far as it stays linear.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lipray.model.network import Conv, Dense, Network

if TYPE_CHECKING:
    import torch

    from lipray.model.evaluate import Weights

    Function = Callable[[torch.Tensor], torch.Tensor]

STARTS_PER_BUNDLE = 16
SCALES = (0.1, 1.0, 10.0)
SEPARATIONS = (1.0, 0.1)
UNIT = 2.0**-53
NOISE = 2.0**-46
"""What images are off by, relative to their entries, when pairs are ranked."""
LOST = 0.01
"""Part of a quotient that rounding may take before it is worked out in long arithmetic."""
NORMED = 1e9
"""Multiply-adds up to which the norms of a network's layers are worked out for its rounding: some seconds."""
THOROUGH = 50
"""Steps from which on a network is cheap enough to refine thoroughly."""
_WORK = 1.5e10  # multiply-adds an automatic search may cost: some seconds on one core
_RATE = 4e9  # multiply-adds per second of one core
_PASSES = 14  # evaluations, gradients counted, per step of one start
_BATCH_BYTES = 2**30
_TINY = 1e-300


@dataclass(frozen=True, slots=True)
class Ascent:
    """A bundle of starts, one task: ``starts`` pairs of which the first is number ``first`` of the run.

    ``points`` (N, *input_shape) holds given data for the first N starts; the others are random from ``seed``.
    """

    label: str
    network: Network
    first: int
    starts: int
    steps: int
    seed: int
    points: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class Witness:
    """A pair of inputs and the quotient it attains, less an allowance for rounding.

    ``quotient`` 0 with ``x`` = ``y`` means that no pair with different images was found.
    """

    quotient: float
    x: np.ndarray
    y: np.ndarray


def multiply_adds(network: Network) -> int:
    """Multiplications of one evaluation of the network, padding included."""
    total = 0
    for node in network.nodes:
        if isinstance(node.op, (Conv, Dense)):
            total += node.size * math.prod(network.weights[node.op.weight].shape[1:])
        else:
            total += node.size
    return total


def plan_ascents(
    network: Network,
    *,
    starts: int | None,
    seed: int,
    data: np.ndarray | None = None,
    label: str = "lower",
    seconds: float | None = None,
) -> tuple[Ascent, ...]:
    """Bundles of starts; ``starts`` ``None`` chooses from the cost of one evaluation, 0 asks for none.

    ``seconds`` is what all of them may take on one core, by estimate: long budgets search more, and where not even
    one step from one start fits, nothing is sought unless ``starts`` asks for it.

    With ``data`` (N, *input_shape), every second start is a data point, spread evenly over the N.
    The bundles depend on nothing but the arguments, so a run repeats exactly, however it is executed.
    """
    cost = max(multiply_adds(network), 1)
    work, fewest = _WORK, (2, 6)
    if seconds is not None:
        affordable = seconds * _RATE / (_PASSES * cost)  # steps of one start
        if starts is None and affordable < 1.0:
            return ()
        work, fewest = min(10 * _WORK, 6 * cost * affordable), (1, 1)
    if starts is None:
        starts = int(np.clip(work / (120 * 6 * cost), fewest[0], 64))
    if starts == 0:
        return ()
    steps = int(np.clip(work / (max(starts, 1) * 6 * cost), fewest[1], 200))
    width = task_width(network)
    bundles = []
    for first in range(0, starts, width):
        count = min(width, starts - first)
        points = None
        if data is not None:
            given = min((count + 1) // 2, len(data))
            order = np.random.default_rng([seed, first, 1]).choice(len(data), size=given, replace=False)
            points = np.ascontiguousarray(data[order], dtype=np.float64)
        bundles.append(Ascent(f"{label}/{first // width}", network, first, count, steps, seed, points))
    return tuple(bundles)


def ascent_seconds(ascent: Ascent) -> float:
    """Seconds that a bundle of starts takes on one core (an estimate)."""
    return _PASSES * ascent.starts * ascent.steps * multiply_adds(ascent.network) / _RATE


def task_width(network: Network) -> int:
    """Starts that one task takes: as many as fit the memory of a batch with its gradients."""
    size = sum(node.size for node in network.nodes) * 8 * 6
    return int(np.clip(_BATCH_BYTES // size, 1, STARTS_PER_BUNDLE))


def ascend(task: Ascent) -> Witness:
    """The best pair of one bundle of starts; see ``attained`` for what its quotient means."""
    import torch

    network = task.network
    weights = _prepared(network)
    function = _function(network, weights)
    shape = network.input_shape
    if math.prod(shape) == 0 or math.prod(network.output_shape) == 0:
        return Witness(0.0, np.zeros(shape), np.zeros(shape))
    middle, half = _starts(task, function)
    half = _climb(function, middle, half, task.steps, rate=0.1)
    quotient = _quotients(function, middle, half)
    keep = torch.argsort(quotient, descending=True, stable=True)[: max(1, task.starts // 4)]
    middle, half = middle[keep].clone(), half[keep].clone()
    half = _climb(function, middle, half, task.steps, rate=0.03)
    return _refine(network, weights, middle, half, thorough=task.steps >= THOROUGH)


def attained(network: Network, x: np.ndarray, y: np.ndarray) -> float:
    """‖f(x) − f(y)‖₂ / ‖x − y‖₂ in float64, less what the rounding of the two evaluations can amount to.

    That is found by a running error analysis (``lipray.model.evaluate_error``), node by node, so that signals which
    cancel on the way to a small result count with their own size. Where it takes more than ``LOST`` of the quotient,
    as it does when layers are many, the images' difference is worked out in long arithmetic
    (``lipray.model.evaluate_exact``), or, if the network's operations do not allow that, the error's norm is carried on
    by those of the layers. Never negative.
    """
    import torch

    from lipray.model.evaluate_error import evaluate_with_error
    from lipray.model.evaluate_exact import difference

    pair = torch.from_numpy(np.stack([x, y]).astype(np.float64))
    weights = _prepared(network)
    value, likely = (float(part) for part in _attained(network, weights, pair[:1], pair[1:]))
    if not value < (1 - LOST) * likely < math.inf:
        return value
    found = difference(network, pair[0], pair[1], weights, likely * float((pair[0] - pair[1]).norm()))
    if found is None:
        if multiply_adds(network) > NORMED:
            return value
        with torch.no_grad():
            images, errors = evaluate_with_error(network, pair, weights, _constants(network))
        found = images[0] - images[1], errors[0] + errors[1]
    return max(value, float(_less(network, pair[:1] - pair[1:], *(part.unsqueeze(0) for part in found))))


def _constants(network: Network) -> list[float]:
    """A bound of the constant of every node with one input, 1 for the others, which do not look at it."""
    from lipray.verify.layer_norms import operation_constant

    return [
        operation_constant(node.op, network.weights, network.nodes[node.inputs[0]].shape, node.shape)
        if len(node.inputs) == 1
        else 1.0
        for node in network.nodes
    ]


def _attained(
    network: Network, weights: Weights, x: torch.Tensor, y: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """``attained`` by float64 alone for a batch of pairs (S, *input_shape), and the quotient that is likely.

    Both are 0 where the points or their images coincide. Likely is what is left when images are off by ``NOISE``.
    """
    import torch

    from lipray.model.evaluate_error import evaluate_with_error

    with torch.no_grad():
        count = len(x)
        images, errors = evaluate_with_error(network, torch.cat([x, y]), weights)
        apart = images[:count] - images[count:]
        size = images.abs()
        return (
            _less(network, x - y, apart, errors[:count] + errors[count:]),
            _less(network, x - y, apart, NOISE * (size[:count] + size[count:])),
        )


def _less(network: Network, points: torch.Tensor, images: torch.Tensor, errors: torch.Tensor) -> torch.Tensor:
    """Quotients of the norms of differences, less the norms of errors and the rounding of all of this."""
    import torch

    # Rounding of x - y, of the images' difference, and of norms.
    shrink = 1 - 4 * UNIT * (math.prod(network.input_shape) + math.prod(network.output_shape) + 8)
    distance, error, length = (_flat(part).norm(dim=1) for part in (images, errors, points))
    value = (distance * shrink - error) / length * shrink
    return torch.where(torch.isfinite(value) & (value > 0), value, torch.zeros_like(value))


def best(witnesses: dict[str, Witness]) -> Witness | None:
    """The best of the bundles' witnesses, ties broken by label; independent of the order of arrival."""
    ranked = sorted(witnesses.items(), key=lambda item: (-item[1].quotient, item[0]))
    return ranked[0][1] if ranked else None


def _prepared(network: Network) -> Weights:
    from lipray.model.evaluate import prepare

    return prepare(network)


def _function(network: Network, weights: Weights) -> Function:
    from lipray.model.evaluate import evaluate

    return lambda x: evaluate(network, x, weights)


def _flat(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(x.shape[0], -1)


def _norm(x: torch.Tensor) -> torch.Tensor:
    """Norm per sample, shaped to multiply ``x``."""
    norm: torch.Tensor = _flat(x).norm(dim=1)
    return norm.reshape(-1, *[1] * (x.dim() - 1))


def _starts(task: Ascent, function: Function) -> tuple[torch.Tensor, torch.Tensor]:
    """Midpoints and half differences (S, *input_shape); the differences follow the Jacobian where they can."""
    import torch

    shape = task.network.input_shape
    draw = np.random.default_rng([task.seed, task.first])
    index = np.arange(task.first, task.first + task.starts)
    scale = np.array(SCALES)[index % len(SCALES)].reshape(-1, *[1] * len(shape))
    separation = np.array(SEPARATIONS)[index // len(SCALES) % len(SEPARATIONS)].reshape(scale.shape)
    middle = draw.standard_normal((task.starts, *shape)) * scale
    direction = draw.standard_normal((task.starts, *shape))
    if task.points is not None:
        middle[: len(task.points)] = task.points
    x, v = torch.from_numpy(middle), torch.from_numpy(direction)
    v = _power(function, x, v / _norm(v), 4)
    length = _norm(x).clamp_min(1e-3) * torch.from_numpy(separation)
    return x, v * length


def _quotients(function: Function, middle: torch.Tensor, half: torch.Tensor) -> torch.Tensor:
    import torch

    with torch.no_grad():
        images = _flat(function(torch.cat([middle + half, middle - half])))
        count = len(middle)
        distance: torch.Tensor = (images[:count] - images[count:]).norm(dim=1)
        quotient: torch.Tensor = distance / (2 * _flat(half).norm(dim=1)).clamp_min(_TINY)
        return quotient


def _climb(function: Function, middle: torch.Tensor, half: torch.Tensor, steps: int, *, rate: float) -> torch.Tensor:
    """Ascend on log ‖f(m + d) − f(m − d)‖ − log ‖2d‖; ``middle`` is updated in place, the best ``d`` returned.

    Per start: momentum, the gradient divided by its running size, steps of ``rate``·‖d‖ that shrink to zero.
    """
    import torch

    count = len(middle)
    best_quotient = torch.full((count,), -1.0, dtype=middle.dtype)
    best_middle, best_half = middle.clone(), half.clone()
    x, d = middle.clone(), half.clone()
    momentum = [torch.zeros_like(x), torch.zeros_like(d)]
    size = [torch.zeros_like(_norm(x)), torch.zeros_like(_norm(d))]
    for step in range(steps):
        x.requires_grad_()
        d.requires_grad_()
        images = _flat(function(torch.cat([x + d, x - d])))
        quotient = (images[:count] - images[count:]).norm(dim=1) / (2 * _flat(d).norm(dim=1)).clamp_min(_TINY)
        gradients = torch.autograd.grad(quotient.clamp_min(_TINY).log().sum(), [x, d])
        x, d, value = x.detach(), d.detach(), quotient.detach()
        improved = value > best_quotient
        best_quotient = torch.where(improved, value, best_quotient)
        best_middle[improved], best_half[improved] = x[improved], d[improved]
        length = rate * (1 - step / steps) * _norm(d)
        moved = []
        for number, (point, gradient) in enumerate(zip((x, d), gradients, strict=True)):
            clean = torch.nan_to_num(gradient)
            momentum[number] = 0.9 * momentum[number] + 0.1 * clean
            size[number] = 0.99 * size[number] + 0.01 * _norm(clean) ** 2
            mean = momentum[number] / (1 - 0.9 ** (step + 1))
            spread = (size[number] / (1 - 0.99 ** (step + 1))).sqrt().clamp_min(_TINY)
            moved.append(point + length * mean / spread)
        x, d = moved
    middle.copy_(best_middle)
    return best_half


def _power(function: Function, x: torch.Tensor, v: torch.Tensor, steps: int) -> torch.Tensor:
    """Unit vectors (S, *shape) after ``steps`` of power iteration on JᵀJ at ``x``, from ``v``.

    Jv is the derivative of Jᵀu in u, which is linear, so that reverse mode alone suffices.
    """
    import torch

    point = x.detach().requires_grad_()
    with torch.enable_grad():
        image = function(point)
        dual = torch.zeros_like(image, requires_grad=True)
        (pulled,) = torch.autograd.grad(image, point, dual, create_graph=True)
        if not pulled.requires_grad:  # the network is constant
            return v
        for _ in range(steps):
            (pushed,) = torch.autograd.grad(pulled, dual, v, retain_graph=True)
            (back,) = torch.autograd.grad(image, point, pushed, retain_graph=True)
            norm = _norm(back)
            v = torch.where(norm > _TINY, back / norm.clamp_min(_TINY), v)
    return v.detach()


def _refine(network: Network, weights: Weights, middle: torch.Tensor, half: torch.Tensor, *, thorough: bool) -> Witness:
    """The best pair among the given ones and those along the top singular directions at their points.

    Where an evaluation is dear (not ``thorough``), fewer points, iterations and separations are tried.
    """
    import torch

    function = _function(network, weights)
    keep = torch.argsort(_quotients(function, middle, half), descending=True, stable=True)[: 4 if thorough else 1]
    middle, half = middle[keep], half[keep]
    points = torch.cat([middle, middle + half, middle - half]) if thorough else middle
    length = _norm(half).repeat(len(points) // len(half), *[1] * (half.dim() - 1))
    along = half.repeat(len(points) // len(half), *[1] * (half.dim() - 1)) / length
    direction = _power(function, points, along, 30 if thorough else 8)
    firsts, seconds = [middle + half], [middle - half]
    for exponent in range(0, 13, 1 if thorough else 3):
        reach = direction * length * 4.0**-exponent
        firsts.append(points + reach)
        seconds.append(points - reach)
    x, y = torch.cat(firsts), torch.cat(seconds)
    width = task_width(network)
    parts = [_attained(network, weights, x[i : i + width], y[i : i + width]) for i in range(0, len(x), width)]
    proven, likely = (torch.cat(values) for values in zip(*parts, strict=True))
    tops = [proven] if float(proven.max()) >= (1 - LOST) * float(likely.max()) else [likely, proven]
    found = []
    for top in sorted({int(torch.argmax(values)) for values in tops if float(values.max()) > 0.0}):
        left, right = x[top].numpy().copy(), y[top].numpy().copy()
        found.append(Witness(attained(network, left, right), left, right))  # as whoever checks the pair will find it
    witness = max(found, key=lambda witness: witness.quotient, default=None)
    if witness is not None and witness.quotient > 0.0:
        return witness
    left = x[0].numpy().copy()
    return Witness(0.0, left, left.copy())
