"""Networks of rows and of differences compute exactly those."""

import numpy as np
import pytest
import torch
from torch import nn

from lipray.errors import UsageError
from lipray.model.evaluate import evaluate
from lipray.model.importer import import_module
from lipray.model.network import Activation, Dense, Network, Softmax
from lipray.model.select import select_pairs, select_rows

X = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def build(*tail):
    torch.manual_seed(1)
    return import_module(nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 4), *tail).eval(), (5,))


@pytest.mark.parametrize("tail", [(), (nn.Tanh(),)])
@pytest.mark.parametrize("rows", [[2], [3, 0], [0, 1, 2, 3]])
def test_rows(tail, rows):
    network = build(*tail)
    chosen = select_rows(network, rows)
    assert chosen.output_shape == (len(rows),)
    assert torch.equal(evaluate(chosen, X), evaluate(network, X)[:, rows])


def test_rows_of_a_last_dense_layer_are_folded_in_their_own_type():
    network = build()
    chosen = select_rows(network, [3, 1])
    assert len(chosen.nodes) == len(network.nodes)
    op = chosen.nodes[-1].op
    assert isinstance(op, Dense)
    assert chosen.weights[op.weight].dtype == np.float32
    assert select_rows(build(nn.Tanh()), [3, 1]).nodes[-1].op == Dense("output rows", None)
    assert select_rows(network, [3, 1]).content_hash() != select_rows(network, [1, 3]).content_hash()


@pytest.mark.parametrize("tail", [(), (nn.Tanh(),), (nn.LogSoftmax(1),)])
def test_pairs(tail):
    network = build(*tail)
    pairs = [(3, 1), (0, 2), (1, 3)]
    margins = select_pairs(network, pairs)
    values = evaluate(network, X)
    expected = torch.stack([values[:, i] - values[:, j] for i, j in pairs], 1)
    torch.testing.assert_close(evaluate(margins, X), expected, rtol=1e-12, atol=1e-12)
    assert not any(isinstance(node.op, Softmax) for node in margins.nodes)
    assert np.array_equal(margins.weights["output pairs"][0], [0, -1, 0, 1])


def test_softmax_is_refused_where_its_outputs_would_be_used():
    for log in (False, True):
        tail = nn.LogSoftmax(1) if log else nn.Softmax(1)
        with pytest.raises(UsageError, match="logits"):
            select_rows(build(tail), [0])
    with pytest.raises(UsageError, match="logits"):
        select_pairs(build(nn.Softmax(1)), [(0, 1)])


@pytest.mark.parametrize("rows", [[4], [-1], [], [0, 0]])
def test_bad_rows(rows):
    with pytest.raises(UsageError) as caught:
        select_rows(build(), rows)
    assert caught.value.args[0] == "--output-rows"


@pytest.mark.parametrize("pairs", [[(0, 4)], [(-1, 0)], [], [(2, 2)]])
def test_bad_pairs(pairs):
    with pytest.raises(UsageError) as caught:
        select_pairs(build(), pairs)
    assert caught.value.args[0] == "--pairs"


def test_output_must_be_a_vector():
    network = import_module(nn.Conv2d(1, 2, 3).eval(), (1, 5, 5))
    with pytest.raises(UsageError, match="vector"):
        select_rows(network, [0])
    with pytest.raises(UsageError, match="vector"):
        select_pairs(network, [(0, 1)])


def test_selecting_twice_and_name_clashes():
    network = build(nn.Tanh())
    once = select_rows(network, [3, 1, 0])
    twice = select_rows(once, [2, 0])
    assert torch.equal(evaluate(twice, X), evaluate(network, X)[:, [0, 3]])
    margins = select_pairs(select_pairs(network, [(0, 1), (2, 3)]), [(0, 1)])
    values = evaluate(network, X)
    expected = values[:, [0]] - values[:, [1]] - values[:, [2]] + values[:, [3]]
    torch.testing.assert_close(evaluate(margins, X), expected)
    assert isinstance(network, Network)
    assert isinstance(network.nodes[-1].op, Activation)
