"""Cuts in depth: blocks of consecutive layers whose maps compose to the network's map."""

from __future__ import annotations

from collections.abc import Callable

from lipray.errors import PlanError
from lipray.model.network import Activation, ChannelAffine, MaxPool, Network, Node
from lipray.verify.cuts import cut_positions, sub_network


def is_nonlinear(node: Node) -> bool:
    """Whether the node counts as an activation layer: an activation or a maximum pool."""
    return isinstance(node.op, Activation | MaxPool)


def activation_layers(network: Network) -> int:
    """Number of activation layers, maximum pools counted as one each."""
    return sum(is_nonlinear(node) for node in network.nodes)


def split_units(network: Network) -> tuple[int, ...]:
    """Last node of every unit, the smallest block: layers up to and with one activation layer.

    A residual or concatenated block is one unit, together with the activation that follows its join
    (at most a channel-wise affine map between them). Linear layers after the last activation, and a
    softmax, belong to the last unit; a network without an activation is one unit.
    """
    return (*activation_ends(network)[:-1], len(network.nodes) - 1)


def activation_ends(network: Network) -> tuple[int, ...]:
    """Ends of the units where their activations end: as ``split_units``, without what trails the last one."""
    cuts = cut_positions(network)
    nodes = network.nodes
    ends: list[int] = []
    active = False
    start = 0
    position = 0
    while position < len(cuts):
        end = cuts[position]
        segment = nodes[start + 1 : end + 1]
        active = active or any(is_nonlinear(node) for node in segment)
        if active:
            if len(segment) > 1 and not is_nonlinear(nodes[end]):
                position = _through_activation(network, cuts, position)
            ends.append(cuts[position])
            active = False
        start = cuts[position]
        position += 1
    return tuple(ends)


def _through_activation(network: Network, cuts: tuple[int, ...], position: int) -> int:
    """Index in ``cuts`` of the activation that follows a join, or ``position`` where none does."""
    for following in range(position + 1, len(cuts)):
        if cuts[following] != cuts[following - 1] + 1:
            return position
        op = network.nodes[cuts[following]].op
        if isinstance(op, Activation):
            return following
        if not isinstance(op, ChannelAffine):
            return position
    return position


def split_depth(
    network: Network,
    block_depth: int | None,
    *,
    fits: Callable[[Network], bool] | None = None,
) -> tuple[Network, ...]:
    """Cut the network into blocks of consecutive layers; their maps compose to the network's map.

    Args:
        network: the whole network.
        block_depth: activation layers per block (a maximum pool counts as one). A unit with more, such
            as a residual block, is a block of its own. ``None``: as few and as large blocks as fit.
        fits: whether a block can be solved whole; only used where ``block_depth`` is ``None``. Blocks are
            then grown from the output backwards, because the dense tail gains most from being solved with
            the layers before it. A unit that does not fit alone is still returned as one block.

    Returns:
        The blocks in order, sharing the network's arrays.

    Raises:
        PlanError: ``block_depth`` is not positive.
    """
    if block_depth is not None and block_depth < 1:
        raise PlanError(
            "--block-depth",
            f"{block_depth} is not a number of activation layers",
            hint="Give 1 or more, or leave it out to let the planner choose.",
        )
    ends = split_units(network)
    if block_depth is None:
        if fits is None or fits(network):
            return (network,)
        groups = _group_backwards(network, ends, fits)
    else:
        groups = _group_forwards(network, ends, block_depth)
    return tuple(sub_network(network, first, last) for first, last in groups)


def _group_forwards(network: Network, ends: tuple[int, ...], block_depth: int) -> list[tuple[int, int]]:
    groups: list[tuple[int, int]] = []
    first, previous, count = 0, 0, 0
    for end in ends:
        layers = sum(is_nonlinear(node) for node in network.nodes[previous + 1 : end + 1])
        if count and count + layers > block_depth:
            groups.append((first, previous))
            first, count = previous, 0
        count += layers
        previous = end
    groups.append((first, previous))
    return groups


def _group_backwards(network: Network, ends: tuple[int, ...], fits: Callable[[Network], bool]) -> list[tuple[int, int]]:
    starts = (0, *ends[:-1])
    groups: list[tuple[int, int]] = []
    unit = len(ends) - 1
    while unit >= 0:
        last = ends[unit]
        while unit > 0 and fits(sub_network(network, starts[unit - 1], last)):
            unit -= 1
        groups.append((starts[unit], last))
        unit -= 1
    return groups[::-1]
