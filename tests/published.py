"""Reads published networks and their known values from the folder beside the project, for tests and benchmarks."""

import csv
import json
import math
import os
from pathlib import Path

import numpy as np

from lipray.model.network import Activation, AvgPool, Conv, Dense, Input, Network, Node, Reshape, Sum

ROOT = Path(__file__).resolve().parents[1]
FOLDER = Path(os.environ.get("LIPRAY_NETWORKS", ROOT.parent / "shared" / "networks"))


def here() -> bool:
    """Whether the folder is there."""
    return (FOLDER / "networks.json").is_file()


def catalogue(folder=FOLDER) -> dict:
    """What ``networks.json`` says of every network."""
    return json.loads((folder / "networks.json").read_text())


def anchors() -> list[dict[str, str]]:
    """The rows of ``anchors.csv``: network, output, method, value and where it is from."""
    with (FOLDER / "anchors.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def anchor(network, method):
    """The first known value of a network by a method whose name contains ``method``."""
    for row in anchors():
        if row["network"] == network and method in row["method"]:
            return float(row["value"])
    raise KeyError((network, method))


def published(name, row=None, folder=FOLDER) -> Network:
    """One of the published networks (of those in ``folder``), all outputs or a single row of the last layer."""
    from safetensors.numpy import load_file

    spec = catalogue(folder)[name]
    weights = load_file(folder / spec["file"])
    nodes = [Node("input", Input(), (), tuple(spec["input_shape"]))]

    def add(label, op, inputs, shape):
        nodes.append(Node(label, op, inputs, shape))
        return len(nodes) - 1

    def chain(layers, at):
        for layer in layers:
            kind = next(iter(layer))
            shape = nodes[at].shape
            if kind == "linear":
                key = layer[kind]
                bias = f"{key}.bias" if f"{key}.bias" in weights else None
                at = add(key, Dense(f"{key}.weight", bias), (at,), (len(weights[f"{key}.weight"]),))
            elif kind == "conv2d":
                key, stride, pad = layer[kind], layer.get("stride", 1), layer.get("padding", 0)
                out, _, *kernel = weights[f"{key}.weight"].shape
                side = [(n + 2 * pad - k) // stride + 1 for n, k in zip(shape[1:], kernel, strict=True)]
                bias = f"{key}.bias" if f"{key}.bias" in weights else None
                op = Conv(f"{key}.weight", bias, (stride,) * 2, ((pad, pad),) * 2, (1, 1))
                at = add(key, op, (at,), (out, *side))
            elif kind == "relu":
                at = add("relu", Activation("relu", (0.0,), (1.0,)), (at,), shape)
            elif kind == "flatten":
                at = add("flatten", Reshape(), (at,), (math.prod(shape),))
            elif kind == "avgpool2d":
                k = layer[kind]
                pooled = (shape[0], *(n // k for n in shape[1:]))
                at = add("pool", AvgPool((k, k), (k, k), ((0, 0),) * 2), (at,), pooled)
            else:
                assert kind == "residual", layer
                body = chain(layer["residual"], at)
                at = add("add", Sum((1.0, 1.0)), (at, body), shape)
                at = chain(layer.get("then", []), at)
        return at

    end = chain(spec["layers"], 0)
    if row is not None:
        last = nodes[end]
        # Keys of their own: a weight may be tied to another layer's.
        weights["row"] = weights[last.op.weight][row : row + 1]
        nodes[end] = Node(last.name, Dense("row", None), last.inputs, (1,))
    return Network(tuple(nodes), {key: np.asarray(value) for key, value in weights.items()})
