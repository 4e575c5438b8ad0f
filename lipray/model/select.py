"""Networks for some outputs, or for differences of outputs, of a network."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lipray.errors import UsageError
from lipray.model.network import Dense, Network, Node, Softmax

ROWS_OPTION = "--output-rows"
PAIRS_OPTION = "--pairs"


def select_rows(network: Network, rows: Sequence[int]) -> Network:
    """The network restricted to some entries of its output vector.

    The rows of a last dense layer are picked from its weight, which is exact; otherwise a dense layer of zeros
    and ones is appended.

    Args:
        network: a network whose output is a vector.
        rows: indices into the output, in the order wanted, each at most once.

    Raises:
        UsageError: when the output is not a vector, an index is out of range or repeated, nothing is selected,
            or the network ends in softmax (each of its outputs depends on all logits).
    """
    size = _outputs(network, ROWS_OPTION)
    if not rows:
        raise UsageError(ROWS_OPTION, "no rows are given")
    if len(set(rows)) != len(rows):
        raise UsageError(ROWS_OPTION, f"a row is given twice in {list(rows)}")
    for row in rows:
        _in_range(row, size, ROWS_OPTION)
    last = network.nodes[-1]
    if isinstance(last.op, Softmax):
        raise UsageError(
            ROWS_OPTION,
            f"the network ends in softmax ({last.name!r}), whose outputs each depend on every logit",
            hint="Bound the logits: drop the softmax from the model, or give pairs of log-softmax outputs.",
        )
    if isinstance(last.op, Dense):
        chosen = list(rows)
        tag = "[" + ",".join(map(str, chosen)) + "]"
        arrays = {last.op.weight + tag: network.weights[last.op.weight][chosen]}
        bias = None
        if last.op.bias is not None:
            bias = last.op.bias + tag
            arrays[bias] = network.weights[last.op.bias][chosen]
        node = Node(last.name, Dense(last.op.weight + tag, bias), last.inputs, (len(chosen),))
        return Network((*network.nodes[:-1], node), {**network.weights, **arrays})
    matrix = np.zeros((len(rows), size), dtype=np.float64)
    matrix[np.arange(len(rows)), list(rows)] = 1.0
    return _append(network, "output rows", matrix)


def select_pairs(network: Network, pairs: Sequence[tuple[int, int]]) -> Network:
    """The network of the differences f_i − f_j of entries of its output vector (margins).

    A dense layer with entries 1 and −1 is appended: folding it into a last dense layer could round. A last
    log-softmax is dropped first, because it subtracts the same number from every logit.

    Args:
        network: a network whose output is a vector.
        pairs: (i, j), i ≠ j, in the order wanted.

    Raises:
        UsageError: when the output is not a vector, an index is out of range, i = j, nothing is selected, or
            the network ends in softmax.
    """
    size = _outputs(network, PAIRS_OPTION)
    if not pairs:
        raise UsageError(PAIRS_OPTION, "no pairs are given")
    for first, second in pairs:
        _in_range(first, size, PAIRS_OPTION)
        _in_range(second, size, PAIRS_OPTION)
        if first == second:
            raise UsageError(PAIRS_OPTION, f"the pair {first},{second} has no difference")
    last = network.nodes[-1]
    if isinstance(last.op, Softmax):
        if not last.op.log:
            raise UsageError(
                PAIRS_OPTION,
                f"the network ends in softmax ({last.name!r}), and a difference of probabilities is no margin",
                hint="Bound the logits: drop the softmax from the model.",
            )
        network = Network(_upto(network, last.inputs[0]), network.weights)
    matrix = np.zeros((len(pairs), size), dtype=np.float64)
    for row, (first, second) in enumerate(pairs):
        matrix[row, first], matrix[row, second] = 1.0, -1.0
    return _append(network, "output pairs", matrix)


def _outputs(network: Network, option: str) -> int:
    if len(network.output_shape) != 1:
        raise UsageError(
            option,
            f"the network's output has shape {network.output_shape}, not a vector",
            hint="Rows and pairs name entries of an output vector, such as class scores.",
        )
    return network.output_shape[0]


def _in_range(row: int, size: int, option: str) -> None:
    if not 0 <= row < size:
        raise UsageError(
            option, f"{row} is not an output of the network", hint=f"Its outputs are numbered 0 to {size - 1}."
        )


def _upto(network: Network, index: int) -> tuple[Node, ...]:
    """The nodes up to one; softmax reads the node before it, so nothing lies between."""
    return network.nodes[: index + 1]


def _append(network: Network, name: str, matrix: np.ndarray) -> Network:
    taken = {*network.weights, *(node.name for node in network.nodes)}
    key, count = name, 1
    while key in taken:
        count += 1
        key = f"{name} {count}"
    node = Node(key, Dense(key, None), (len(network.nodes) - 1,), (matrix.shape[0],))
    return Network((*network.nodes, node), {**network.weights, key: matrix})
