"""Where one signal crosses, so that a network is a composition of two maps."""

from __future__ import annotations

from lipray.model.network import Input, Network, Node


def cut_positions(network: Network) -> tuple[int, ...]:
    """Nodes k after which the network may be cut, the last node included.

    The cut after node k is allowed where one signal crosses it: every edge from a node <= k to a node
    > k starts at node k. It is never inside a residual or a concatenated block.
    """
    last_use = list(range(len(network.nodes)))
    for index, node in enumerate(network.nodes):
        for source in node.inputs:
            last_use[source] = max(last_use[source], index)
    cuts: list[int] = []
    reach = last_use[0]
    for index in range(1, len(network.nodes)):
        if reach <= index:
            cuts.append(index)
        reach = max(reach, last_use[index])
    return tuple(cuts)


def sub_network(network: Network, first: int, last: int) -> Network:
    """The map from the signal of node ``first`` to that of node ``last``, both cut positions (or 0).

    The arrays are shared, not copied. The whole network is returned as it is.

    Raises:
        ValueError: a node in between reads one before ``first``, so that ``first`` is no cut position.
    """
    if first == 0 and last == len(network.nodes) - 1:
        return network
    for node in network.nodes[first + 1 : last + 1]:
        if min(node.inputs) < first:
            raise ValueError(f"{node.name} reads a node before {network.nodes[first].name}, where no cut is possible")
    source = network.nodes[first]
    head = Node(name=source.name, op=Input(), inputs=(), shape=source.shape)
    body = tuple(
        Node(name=node.name, op=node.op, inputs=tuple(i - first for i in node.inputs), shape=node.shape)
        for node in network.nodes[first + 1 : last + 1]
    )
    return Network(nodes=(head, *body), weights=network.weights)
