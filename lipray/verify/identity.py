"""Which network a certificate is about: hashes of its graph and of its weights, apart."""

from __future__ import annotations

import hashlib
from dataclasses import fields

import numpy as np

from lipray.model.network import ARRAY_FIELDS, Network, array_keys


def graph_hash(network: Network) -> str:
    """SHA-256 of the operations, what they read, and all shapes and types; names and numbers do not count."""
    order = {key: number for number, key in enumerate(array_keys(network))}
    digest = hashlib.sha256(b"lipray graph 1")
    for node in network.nodes:
        digest.update(f"\n{type(node.op).__name__} {node.inputs} {node.shape}".encode())
        for item in fields(node.op):
            value = getattr(node.op, item.name)
            if item.name in ARRAY_FIELDS and value is not None:
                array = network.weights[value]
                value = (order[value], array.dtype.str, array.shape)
            digest.update(f" {item.name}={value!r}".encode())
    return digest.hexdigest()


def weights_hash(network: Network) -> str:
    """SHA-256 of the arrays' bytes, in the order the graph uses them."""
    digest = hashlib.sha256(b"lipray weights 1")
    for key in array_keys(network):
        digest.update(np.ascontiguousarray(network.weights[key]).tobytes())
    return digest.hexdigest()


class ById:
    """A network hashed by identity, for caches of what is derived from it."""

    __slots__ = ("network",)

    def __init__(self, network: Network) -> None:
        self.network = network

    def __hash__(self) -> int:
        return id(self.network)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ById) and other.network is self.network
