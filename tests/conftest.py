"""What tests of several stages share: one thread per library, and the published networks where they are."""

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import csv  # noqa: E402 - the variables above must be set before numpy is loaded
import json  # noqa: E402
import math  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import pytest  # noqa: E402

from lipray.model.network import (  # noqa: E402
    Activation,
    AvgPool,
    Conv,
    Dense,
    Input,
    Network,
    Node,
    Reshape,
    Sum,
)


@pytest.fixture(scope="session")
def networks_folder() -> Path:
    """The folder of published networks; tests that need it are skipped where it is absent."""
    root = Path(__file__).resolve().parents[1]
    folder = Path(os.environ.get("LIPRAY_NETWORKS", root.parent / "shared" / "networks"))
    if not (folder / "networks.json").is_file():
        pytest.skip("the published networks are not here; set LIPRAY_NETWORKS")
    return folder


@pytest.fixture(scope="session")
def anchors(networks_folder):
    """Known values: ``anchors(network, part of the method's name)`` gives the first that matches."""
    with (networks_folder / "anchors.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))

    def find(network, method):
        for row in rows:
            if row["network"] == network and method in row["method"]:
                return float(row["value"])
        raise KeyError((network, method))

    return find


@pytest.fixture(scope="session")
def published(networks_folder):
    """``published(name, row)``: one of the published networks, all outputs or a single row of the last layer."""
    from safetensors.numpy import load_file

    index = json.loads((networks_folder / "networks.json").read_text())

    def build(name, row=None):
        weights = load_file(networks_folder / index[name]["file"])
        nodes = [Node("input", Input(), (), tuple(index[name]["input_shape"]))]

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

        end = chain(index[name]["layers"], 0)
        if row is not None:
            key = nodes[end].op.weight
            weights[key] = weights[key][row : row + 1]
            if nodes[end].op.bias:
                weights[nodes[end].op.bias] = weights[nodes[end].op.bias][row : row + 1]
            nodes[end] = Node(nodes[end].name, nodes[end].op, nodes[end].inputs, (1,))
        return Network(tuple(nodes), {key: np.asarray(value) for key, value in weights.items()})

    return build
