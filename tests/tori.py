"""Bounds on tori for tests, and the same multipliers on the zero-padded window, one copy per position."""

import math
from dataclasses import replace

import numpy as np
import torch

from lipray.certify.frequency.closed_form import closed_form
from lipray.model.network import Network
from lipray.verify import sector
from lipray.verify.cuts import sub_network
from lipray.verify.elimination import evaluate, prepare
from lipray.verify.spectral import largest_eigenvalue_bound
from lipray.verify.torus.groups import half_plane
from lipray.verify.torus.head import find_head
from lipray.verify.torus.layout import lay_out
from lipray.verify.torus.sweep import pose, sweep


class OnTorus:
    """The part of a network that the torus and its head carry; ``network`` is that part."""

    def __init__(self, network, torus=None, *, window=False):
        self.torus = lay_out(network) if torus is None else torus
        self.head = find_head(network, self.torus, window=window)
        self.problem = pose(network, self.torus, self.head)
        self.groups = half_plane(self.torus.coarse)
        self.end = self.torus.cut if self.head is None else self.head.node
        self.network = sub_network(network, 0, self.end)

    def closed(self):
        """Closed-form multipliers."""
        return closed_form(self.problem, self.groups)

    def scattered(self, rng, spread):
        """Multipliers some factors away from the closed form's, mixed with it until they are feasible."""
        base = self.closed()
        other = [lam * torch.from_numpy(np.exp(spread * rng.normal(size=lam.shape))) for lam in base]
        for share in (1.0, 0.5, 0.25, 0.125, 0.0):
            mixed = tuple(share * b + (1.0 - share) * a for a, b in zip(base, other, strict=True))
            if self.share(mixed, proof=True) is not None:
                return mixed
        return base

    def share(self, multipliers, *, proof=True):
        return sweep(self.problem, self.groups, multipliers, proof=proof)

    def bound(self, multipliers, *, proof=True):
        """The certified constant, or ``None``."""
        share = self.share(multipliers, proof=proof)
        if share is None:
            return None
        if share.gram is None:
            return math.sqrt(share.top)
        error = share.error if proof else 0.0
        eye = torch.eye(len(share.gram), dtype=torch.float64)
        return math.sqrt(largest_eigenvalue_bound(share.gram + error * eye))

    def on_the_window(self, multipliers):
        """The dense bound of the same multipliers, one copy per position of each layer's window."""
        return dense_bound(self.widened(), self.by_name(multipliers))

    def by_name(self, multipliers):
        names = [name for level in self.problem.names for name in level]
        assert len(set(names)) == len(names)
        return dict(zip(names, multipliers, strict=True))

    def widened(self):
        """The network with the slopes that its activations have on the torus."""
        nodes = list(self.network.nodes)
        for index in self.torus.widened:
            op = nodes[index].op
            lower, upper = (tuple(f(0.0, v) for v in ends) for f, ends in ((min, op.lower), (max, op.upper)))
            nodes[index] = replace(nodes[index], op=replace(op, lower=lower, upper=upper))
        return Network(tuple(nodes), self.network.weights)


def dense_bound(network, by_name):
    """The dense bound of per-channel multipliers ``by_name``, layer by layer."""
    form, kept = lower_and_keep(network)
    expanded = []
    for layer in form.layers:
        total, index = kept[layer.name]
        expanded.append(per_position(network, layer.name, total, by_name)[index])
    evaluation = evaluate(prepare(form), expanded)
    return None if evaluation is None else evaluation.bound


def per_position(network, name, total, by_name, columns=None):
    """A layer's multipliers, one copy per position; the rows of a strided max-pool differ by their column's phase.

    ``columns`` is the extent of the last axis, by default the window's.
    """
    if name in by_name:
        lam = by_name[name].numpy()
        return np.repeat(lam, total // len(lam))
    node, axis, turn = name.rsplit(".", 2)
    (pool,) = (other for other in network.nodes if other.name == node)
    columns, step = columns or network.nodes[pool.inputs[0]].shape[-1], pool.op.stride[-1]
    phases = np.stack([by_name[f"{node}.{axis}.{phase}.{turn}"].numpy() for phase in range(step)], axis=1)
    lam = phases[:, None, np.arange(columns) % step]
    return np.broadcast_to(lam, (len(lam), total // (len(lam) * columns), columns)).ravel()


def lower_and_keep(network):
    """The sector form, and of every layer its size before neurons that never move were left out, and who stayed."""
    kept = {}
    plain = sector._slope

    def watched(layers, name, value, size):
        moving = np.zeros(size, dtype=bool)
        for matrix, error in value.values():
            for part in (matrix, error):
                if part is not None:
                    moving |= abs(part).sum(axis=1) > 0
        kept[name] = (size, np.flatnonzero(moving))
        return plain(layers, name, value, size)

    sector._slope = watched
    try:
        return sector.lower(network), kept
    finally:
        sector._slope = plain
