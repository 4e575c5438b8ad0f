"""The networks that are measured, by name and in the order in which they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from harness import ROOT

from lipray.model.load import load_network
from lipray.model.network import Network
from peers.published import reader
from peers.random_networks import eclipse_network, kaiming_block

EXAMPLES = {
    "digits_small": ("examples/digits_small.py:digits_small", "digits_small", (1, 8, 8)),
    "digits_cnn": ("examples/digits_cnn.py:digits_cnn", "digits_cnn", (1, 8, 8)),
    "cnn1": ("cnn1", "cnn1_digits28", None),
    "vgg_digits32": ("examples/vgg_digits32.py:vgg_digits32", "vgg_digits32", (3, 32, 32)),
    "resnet18_digits32": ("resnet18-cifar", "resnet18_digits32", (3, 32, 32)),
}
SEEDS = tuple(f"{kind}_s{seed}" for seed in range(1, 5) for kind in ("fnn2", "fnn3", "cnn2", "cnn3"))
"""Networks trained as another is, from other seeds."""
PUBLISHED = (
    *(f"tiny_{code}" for code in ("d9a07800", "665ba8f6", "35bc00fe", "2cf065c3")),
    "lipsdp_random",
    "lipsdp_mnist50",
    "mlp_L3_W16",
    "mlp_L5_W16",
    "mlp_L9_W16",
    *(f"{kind}_s0" for kind in ("fnn2", "fnn3")),
    "eclipse_mnist_n100",
    "cnn2_s0",
    "FC-R18",
    *(f"chain_{kind}" for kind in ("C3_CH8", "C5_CH8", "C9_CH8", "C3_CH16", "C5_CH16")),
    "LeNet5_wd",
    "2C2F_wd",
    "2C2F",
    "cnn3_s0",
    *SEEDS,
)
DEEP = (
    *((layers, width) for layers in (2, 5, 10, 20, 50, 100) for width in (20, 100)),
    (100, 160),
    (50, 200),
    (50, 400),
    (50, 1000),
)
"""Matrices and width of the random fully connected networks: the ends and the middle of ECLipsE's study."""
SWEEP = tuple(range(1, 15))
"""Channels of the width sweep."""


@dataclass(frozen=True, slots=True)
class Case:
    """A network by name: what it is, how it is made, and the group that it is shown in."""

    name: str
    group: str
    about: str
    make: Callable[[], Network]
    sibling: bool = False
    """Whether it is another network with other weights, on which the slow peers are not tried again."""


def _published(name: str) -> Network:
    return reader.published(name, reader.catalogue()[name].get("output_row"))


def _example(model: str, weights: str, shape: tuple[int, ...] | None) -> Network:
    path = model.replace("examples/", f"{ROOT}/examples/")
    return load_network(path, shape, weights=ROOT / "examples" / f"{weights}.safetensors").network


def _seeded(name: str) -> Network:
    return load_network(name, None).network


def _cases() -> tuple[Case, ...]:
    published = [
        Case(name, "published", "trained and published by others", partial(_published, name), name in SEEDS)
        for name in PUBLISHED
    ]
    examples = [
        Case(name, "examples", "trained here on digits", partial(_example, *EXAMPLES[name])) for name in EXAMPLES
    ]
    deep = [
        Case(
            f"fc_L{layers}_W{width}",
            "fully connected",
            f"ECLipsE's random network of {layers} matrices, width {width}",
            partial(eclipse_network, layers, width),
        )
        for layers, width in DEEP
    ]
    sweep = [
        Case(
            f"width_{channels}",
            "width sweep",
            f"10×10×1, two 3×3 convolutions of {channels} channels, Kaiming weights",
            partial(kaiming_block, 10, (1, channels, channels), padding=1),
        )
        for channels in SWEEP
    ]
    paper = [
        Case("cnn2", "paper", "Sulehman and Mu's CNN2, initial weights", partial(_seeded, "cnn2")),
        Case(
            "depth_10",
            "paper",
            "64×64, ten 3×3 convolutions of 8 channels, Kaiming weights",
            partial(kaiming_block, 64, (3, *[8] * 10), padding=1),
        ),
    ]
    return (*published, *examples[:3], *deep, *sweep, *paper, *examples[3:])


CASES = {case.name: case for case in _cases()}
SHORT = ("tiny_d9a07800", "lipsdp_random", "fnn3_s0", "fc_L5_W20", "digits_small", "width_1", "chain_C3_CH8")
"""Networks of the short run."""


def missing(case: Case) -> str | None:
    """Why a network cannot be had here, ``None`` where it can."""
    if case.group == "published" and not (reader.FOLDER / f"{case.name}.safetensors").is_file():
        return "the published networks are not here (see LIPRAY_NETWORKS)"
    return None
