"""Reads the published networks of the folder beside the project, where it is there."""

import csv
import json
import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from lipray.model import network as net

HOME = Path(os.environ.get("LIPRAY_NETWORKS", Path(__file__).resolve().parent.parent.parent / "shared" / "networks"))

needs_networks = pytest.mark.skipif(not (HOME / "networks.json").exists(), reason="published networks are not here")


@cache
def catalogue():
    return json.loads((HOME / "networks.json").read_text())


@cache
def anchors():
    with (HOME / "anchors.csv").open() as file:
        return tuple(csv.DictReader(file))


def anchor(network, output, method):
    return next(
        float(row["value"])
        for row in anchors()
        if (row["network"], row["output"]) == (network, output) and row["method"].startswith(method)
    )


def published_network(name, *, row=True):
    """The network as a graph; ``row`` keeps only the published output row where there is one."""
    spec = catalogue()[name]
    arrays = dict(load_file(HOME / spec["file"]))
    nodes = [net.Node("input", net.Input(), (), tuple(spec["input_shape"]))]
    counter = [0]

    def push(op, shape, inputs=None):
        counter[0] += 1
        nodes.append(net.Node(f"n{counter[0]}", op, (len(nodes) - 1,) if inputs is None else inputs, tuple(shape)))

    def relu():
        push(net.Activation("relu", (0.0,), (1.0,)), nodes[-1].shape)

    def walk(layers):
        for layer in layers:
            shape = nodes[-1].shape
            if "linear" in layer:
                key = layer["linear"]
                bias = f"{key}.bias" if f"{key}.bias" in arrays else None
                if len(shape) > 1:
                    push(net.Reshape(), (int(np.prod(shape)),))
                push(net.Dense(f"{key}.weight", bias), (arrays[f"{key}.weight"].shape[0],))
            elif "conv2d" in layer:
                key = layer["conv2d"]
                weight = arrays[f"{key}.weight"]
                stride, pad = layer.get("stride", 1), layer.get("padding", 0)
                size = [(n + 2 * pad - k) // stride + 1 for n, k in zip(shape[1:], weight.shape[2:], strict=True)]
                bias = f"{key}.bias" if f"{key}.bias" in arrays else None
                op = net.Conv(f"{key}.weight", bias, (stride,) * 2, ((pad, pad),) * 2, (1, 1))
                push(op, (weight.shape[0], *size))
            elif "relu" in layer:
                relu()
            elif "avgpool2d" in layer:
                pool = layer["avgpool2d"]
                kernel = pool["kernel"] if isinstance(pool, dict) else pool
                stride = layer.get("stride", pool.get("stride", kernel) if isinstance(pool, dict) else kernel)
                size = [(n - kernel) // stride + 1 for n in shape[1:]]
                push(net.AvgPool((kernel,) * 2, (stride,) * 2, ((0, 0),) * 2), (shape[0], *size))
            elif "flatten" in layer:
                push(net.Reshape(), (int(np.prod(shape)),))
            elif "residual" in layer:
                start = len(nodes) - 1
                walk(layer["residual"])
                push(net.Sum((1.0, 1.0)), nodes[start].shape, (start, len(nodes) - 1))
                walk(layer.get("then", []))
            else:
                raise AssertionError(layer)

    walk(spec["layers"])
    network = net.Network(tuple(nodes), arrays)
    if row and "output_row" in spec:
        index = spec["output_row"]
        key = nodes[-1].op.weight
        arrays[f"{key}[row]"] = np.ascontiguousarray(arrays[key][index : index + 1])
        last = net.Node(nodes[-1].name, net.Dense(f"{key}[row]", None), nodes[-1].inputs, (1,))
        network = net.Network((*nodes[:-1], last), arrays)
    return network
