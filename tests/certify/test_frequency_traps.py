"""What leaves a level is above the exact shape matrix, in every direction."""

import numpy as np
import pytest
import torch

from lipray.certify.frequency.elimination import eliminate_level
from lipray.certify.frequency.levels import Level
from lipray.certify.frequency.symbols import identity, turns

PI = np.longdouble("3.14159265358979323846264338327950288")


@pytest.mark.parametrize(("side", "index"), [(14, 6), (22, 1), (54, 17), (84, 13)])
def test_phases_of_one_strong_alias_are_covered_across_their_direction(side, index):
    # One alias outweighs the other, so that the two phases x[2i], x[2i + 1] have a shape matrix of nearly rank one.
    indices = torch.tensor([index, index + side // 2])
    strengths = (1.0, 1e-24)
    waves = torch.stack([turns(indices, side, phase) for phase in (0, 1)], dim=1)
    level = Level((1,), (), ({0: identity(1)},), (1,), (waves,), 2)
    shape = torch.tensor(strengths, dtype=torch.complex128).reshape(2, 1, 1)
    factor = eliminate_level(level, shape, [], folded=2, proof=True)
    exact = np.zeros((2, 2), dtype=np.clongdouble)
    for strength, k in zip(strengths, indices.tolist(), strict=True):
        angle = 2 * PI * k / side
        wave = np.array([1.0, np.cos(angle) + 1j * np.sin(angle)], dtype=np.clongdouble)
        exact += np.longdouble(strength) * np.outer(wave, wave.conj()) / 2
    excess = factor.gram[0].numpy() - exact
    a, b, c = excess[0, 0].real, excess[1, 1].real, excess[0, 1]
    assert a * b >= abs(c) ** 2
    assert a + b >= 0.0
