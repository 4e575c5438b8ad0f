"""Networks of numbers from 1e-323 to 1e308, what they attain in rational arithmetic, and what is proven of them."""

import math

import numpy as np
from flint import fmpq

from lipray.certify.closed_form import closed_form
from lipray.certify.frequency.start import closed_start
from lipray.errors import VerificationError
from lipray.model import activations as act
from lipray.verify.elimination import prepare
from lipray.verify.prove import Proof, pose
from lipray.verify.sector import lower
from lipray.verify.torus.proof import Means, set_up
from tests.ball import Exact, rational
from tests.maps import Maps

LEAST = 5e-324
PROOFS = {
    "product": Proof("product"),
    "dense": Proof("dense"),
    "torus": Proof("torus"),
    "window": Proof("torus", window=True),
}


class Whole:
    """Every neuron of every layer, whatever the verifier leaves out."""

    def get(self, _, default):
        return default[0], np.arange(default[0])


class Attained:
    """Difference quotients that a network without biases attains against the origin, in rationals."""

    def __init__(self, network, seed=0):
        form = Exact(network, Whole())
        rng = np.random.default_rng(seed)
        self.points = []
        for _ in range(6):
            x = [fmpq(int(n)) for n in rng.integers(-3, 4, size=network.nodes[0].size)]
            if not any(x):
                continue
            signals = [x]
            for _, rows in form.layers:
                signals.append([max(value, fmpq(0)) for value in images(rows, signals)])
            self.points.append((images(form.output, signals), sum(n * n for n in x)))

    def squared(self):
        return max((sum(y * y for y in image) / size for image, size in self.points), default=fmpq(0))

    def below(self, figure):
        """Whether the figure's bound is above every quotient, and its matrix above every entry's."""
        if not rational(figure.bound) ** 2 >= self.squared():
            return False
        if figure.gram is None or not np.isfinite(figure.gram).all():
            return True
        ends = [rational(value) for value in np.diagonal(figure.gram)]
        return all(y * y <= end * size for image, size in self.points for y, end in zip(image, ends, strict=True))


def images(rows, signals):
    return [sum((factor * signals[k][i] for (k, i), factor in row.items()), fmpq(0)) for row in rows]


def proofs(network, kind, sizes=(1e-150, 1.0, 1e150)):
    """What multipliers of one size each prove, and those of the closed form, where they are not refused."""
    try:
        posed = pose("test", network, PROOFS[kind])
    except VerificationError:
        return []
    with np.errstate(all="ignore"):
        given = [[np.full(width, size) for width in posed.widths] for size in (sizes if posed.widths else (1.0,))]
        if posed.widths and kind == "dense":
            given.append(closed_form(prepare(lower(network))))
        elif posed.widths:
            start = closed_start(set_up(network, window=kind == "window"), Means())
            given.append(() if start is None else start.multipliers)
        figures = [posed.work(multipliers, Means()) for multipliers in given if len(multipliers) == len(posed.widths)]
    return [figure for figure in figures if figure is not None and math.isfinite(figure.bound)]


def check(network, kinds=tuple(PROOFS)):
    """Every proof holds; how many were not refused."""
    attained = Attained(network)
    found = [(kind, figure) for kind in kinds for figure in proofs(network, kind)]
    for kind, figure in found:
        assert attained.below(figure), (kind, figure.bound)
    return len(found)


# -- random networks


SIZES = (1e-308, 1e-300, 1e-200, 1e-160, 1e-150, 1e-100, 1e-20, 1.0, 1.0, 1e20, 1e100, 1e150)
LEVELS = (-323.0, -321.0, -318.0, -314.0, -310.0, -300.0, -160.0, -100.0, 0.0)
SLOPES = (act.relu(), act.leaky_relu(0.1), act.leaky_relu(-0.2))


class Drawn:
    """A few maps of extreme sizes, with skips and maps that nearly cancel; at the end factors that make up for them.

    ``mild`` keeps the product of the sizes above 1e-323, so that much of what is allowed for stays finite in the end.
    """

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.dense, self.mild = self.rng.random() < 0.3, self.rng.random() < 0.6
        extents = () if self.dense else (int(self.rng.integers(3, 6)),)
        self.maps = Maps(int(self.rng.integers(1, 3)), *extents, seed=seed)
        self.spent = 0.0
        for _ in range(self.rng.integers(2, 6)):
            start = self.maps.last
            self.linear()
            self.joint(start)
        if not self.dense and self.rng.integers(2):
            self.maps.flatten()
            self.maps.dense(int(self.rng.integers(1, 3)))
        while self.spent < -30.0:
            size = 10.0 ** min(-self.spent, self.rng.choice([150.0, 300.0]))
            self.spent += math.log10(size)
            channels, *rest = self.maps.nodes[-1].shape
            if rest and self.rng.integers(2):
                self.maps.sum(self.maps.last, coefficients=(size,))
            elif rest:
                self.maps.conv(np.eye(channels)[:, :, None] * size)
            else:
                self.maps.dense(np.eye(channels) * size)

    def factor(self):
        size = self.rng.choice(SIZES) if self.rng.integers(12) else LEAST * self.rng.integers(1, 4000)
        if self.mild:
            size = 10.0 ** np.clip(self.rng.choice(LEVELS) - self.spent, -308.0, 200.0)
        self.spent += math.log10(size)
        return float(size * self.rng.uniform(0.2, 1.0))

    def array(self, *shape):
        kind = self.rng.integers(4)
        values = self.rng.normal(size=shape) if kind else np.ones(shape)
        if kind == 1:
            values = np.where(self.rng.random(shape) < 0.4, 0.0, values)
        elif kind == 2 and not self.mild:
            values = values * self.rng.choice(SIZES, size=shape)
        return values * self.factor()

    def linear(self):
        maps, rng = self.maps, self.rng
        channels, *rest = maps.nodes[-1].shape
        choice = rng.integers(7)
        if choice == 0:
            maps.sum(maps.last, coefficients=(self.factor(),))
        elif choice == 1 and not self.dense:
            scale = self.array(channels)
            scale[np.abs(scale) < 2.0**-1022] = 0.0  # what is folded is not below
            maps.affine(scale)
        elif choice == 2 and not self.dense and min(rest) >= 2:
            divisor = None if rng.integers(2) else np.full(rest[0] - 1, min(1.0 / self.factor(), 1e308))
            maps.average(kernel=2, stride=1, divisor=divisor)
        elif self.dense:
            maps.dense(self.array(int(rng.integers(1, 4)), channels))
        else:
            taps = int(rng.choice([1, 1, 3]))
            maps.conv(self.array(int(rng.integers(1, 3)), channels, taps), padding=taps // 2)

    def joint(self, start):
        maps, rng = self.maps, self.rng
        choice = rng.integers(8)
        if choice < 2:
            maps.act(SLOPES[rng.integers(len(SLOPES))])
        elif choice == 2 and maps.nodes[start].shape == maps.nodes[-1].shape:
            maps.sum(start, maps.last, coefficients=(1.0, [1.0, -1.0, self.factor()][rng.integers(3)]))
        elif choice == 3 and not self.dense and min(maps.nodes[-1].shape[1:]) >= 2:
            maps.maximum(kernel=2, stride=1)
        elif choice == 4:
            # A product in two steps and in one: what is left is rounding.
            source, (first, second), ends = maps.last, (self.factor(), rng.uniform(0.1, 1.0)), []
            for factors in ((first, second), (first * second,)):
                for step, factor in enumerate(factors):
                    maps.sum(maps.last if step else source, coefficients=(factor,))
                ends.append(maps.last)
            maps.sum(*ends, coefficients=(1.0, -1.0))


def drawn(seed):
    return Drawn(seed).maps.network()
