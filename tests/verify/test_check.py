"""Certificates against networks: what was changed is refused by its part's name, and whatever passes is a bound."""

import copy
import functools
import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lipray.compose.claims import claims
from lipray.config import EstimateConfig
from lipray.errors import CertificateError, VerificationError
from lipray.model import activations as act
from lipray.model.network import Network, Node, Softmax
from lipray.run.driver import estimate_network
from lipray.run.serial import SerialExecutor
from lipray.run.verification import verify_certificate
from lipray.verify.check import TOLERANCE, BlockCheck, Unfolded, conclude, verify
from lipray.verify.identity import graph_hash, weights_hash
from lipray.verify.product import product_bound
from lipray.verify.prove import LARGEST, LEAST, Problem, Proof, pose
from lipray.verify.record import NAME, array_name, decode, digest_of, encode, expected_arrays, unpack
from lipray.verify.tiles import cut_tiles
from tests.maps import Maps
from tests.slopes import worst_slopes
from tests.verify.test_record import changed

HUGE = 1e300
"""A claim that forbids nothing."""
WHOLE = [{"window": [], "problem": 0, "restricted": False}]
"""The tiles of a block that is solved whole."""


def tiled(seed=0, length=9):
    """Mixes channels so often that the bounds of its tiles, all different, beat the product of norms."""
    maps = Maps(1, length, seed=seed)
    maps.conv(4, padding=1)
    maps.act()
    for _ in range(3):
        maps.conv(4, kernel=1)
        maps.act()
    return maps.network()


def headed():
    maps = Maps(1, 5, 5, seed=3)
    maps.conv(2, padding=1)
    maps.act(act.leaky_relu(0.1))
    maps.conv(2, padding=1)
    maps.act()
    maps.flatten()
    maps.dense(3)
    return maps.network()


def residual():
    """Nodes 2 and 5 end what is joined; between them no cut is possible."""
    maps = Maps(2, 6, seed=4)
    maps.conv(2, padding=1)
    skip = maps.act()
    maps.conv(2, padding=1)
    maps.sum(maps.last, skip)
    maps.act()
    maps.conv(2)
    maps.act()
    return maps.network()


NETWORKS = {"tiled": tiled(), "headed": headed(), "residual": residual()}
LOWER = {name: worst_slopes(network, 0) for name, network in NETWORKS.items()}
"""What no bound of them may be below."""
WAYS = {
    "overlap": ("tiled", {"method": "ellipsoid", "partition_factor": 3, "composition": "overlap"}),
    "sum": ("tiled", {"method": "ellipsoid", "partition_factor": 3, "composition": "sum"}),
    "blocks": ("tiled", {"method": "ellipsoid", "partition_factor": 3, "block_depth": 2, "composition": "overlap"}),
    "diagonal": ("tiled", {"method": "ellipsoid", "partition_factor": 3, "composition": "diagonal"}),
    "dense": ("headed", {"method": "ellipsoid"}),
    "torus": ("headed", {"method": "frequency"}),
    "window": ("headed", {"method": "hybrid", "switch": "activation2"}),
    "joined": ("residual", {"method": "ellipsoid", "block_depth": 1}),
    "product": ("headed", {"method": "product"}),
}


def certify(network, **options):
    """The fields of a certificate as they stand in its file, and its arrays."""
    config = EstimateConfig(**({"lower_starts": 0, "executor": "serial", "iterations": 2} | options))
    outcome = estimate_network(network, config, SerialExecutor(1))
    values, arrays = claims(network, outcome.plan, outcome.work, outcome.bound)
    return json.loads(json.dumps(values)), arrays


@functools.cache
def certified(way):
    name, options = WAYS[way]
    values, arrays = certify(NETWORKS[name], **options)
    return NETWORKS[name], values, arrays


def files(values, arrays):
    """A certificate written with right digests and read again."""
    first, second = encode(values, arrays)
    record = decode(NAME, first)
    return record, unpack(NAME, second, expected_arrays(record))


def edited(way, changes):
    """The fields of the certificate of a way, some of them, by their paths, changed."""
    _, values, _ = certified(way)
    for place, value in changes.items():
        values = changed(values, place, value)
    return values


def free(values):
    """The fields with claims that forbid nothing."""
    values = copy.deepcopy(values)
    for part in (values, *values["blocks"], *values["problems"]):
        part["claim"] = HUGE
    return values


def by_hand(network, kind, *, cut=None, window=False):
    """A certificate that no estimate wrote: multipliers so small that they are feasible, claims that forbid nothing."""
    try:
        posed = pose("it", network, Proof(kind, cut=cut, window=window))
    except VerificationError:
        widths, sides = [], []
    else:
        widths, sides = list(zip(posed.names, posed.widths, strict=True)), [list(lengths) for lengths in posed.sides]
    problem = {
        "content": network.content_hash(),
        "method": "by_hand",
        "kind": kind,
        "cut": cut,
        "window": window,
        "sides": sides,
        "windows": [],
        "layers": [{"name": name, "width": width} for name, width in widths],
        "claim": HUGE,
    }
    last = len(network.nodes) - 1
    values = {
        "schema_version": 1,
        "lipray": "by hand",
        "model": {
            "input_shape": list(network.input_shape),
            "output_shape": list(network.output_shape),
            "graph": graph_hash(network),
            "weights": weights_hash(network),
        },
        "selection": {"rows": None, "pairs": None},
        "problems": [problem],
        "blocks": [{"first": 0, "last": last, "composition": "whole", "tiles": WHOLE, "claim": HUGE}],
        "claim": HUGE,
    }
    return values, {array_name(0, n): np.full(width, 1e-3 ** (n + 1)) for n, (_, width) in enumerate(widths)}


def refused(network, record, arrays, *says):
    """Verification fails, in one line that begins with the part, alone and over an executor alike."""
    messages = []
    for attempt in (
        lambda: verify(record, arrays, network),
        lambda: verify_certificate(record, arrays, network, SerialExecutor(1), memory=2**30),
    ):
        with pytest.raises(VerificationError) as caught:
            attempt()
        messages.append(caught.value.describe())
    first, second = messages
    assert first == second
    assert first.isprintable()
    assert first.startswith(says[0])
    for part in says:
        assert part in first
    return first


@pytest.mark.parametrize("way", WAYS)
def test_what_was_certified_is_verified(way):
    """With every figure as it was claimed, and above what is attained."""
    network, values, arrays = certified(way)
    verdict = verify(*files(values, arrays), network)
    assert verdict.bound == values["claim"] >= LOWER[WAYS[way][0]]
    assert verdict.blocks == tuple(block["claim"] for block in values["blocks"])
    assert verdict.problems == tuple(problem["claim"] for problem in values["problems"])


def test_the_ways_are_what_they_are_called():
    """Or the changes below would change nothing."""

    def of(part, key):
        return {way: [item[key] for item in certified(way)[1][part]] for way in WAYS}

    compositions, kinds = of("blocks", "composition"), of("problems", "kind")
    assert compositions["overlap"] == ["overlap"]
    assert compositions["sum"] == ["sum"]
    assert compositions["blocks"] == ["overlap", "overlap"]
    assert compositions["joined"] == ["whole"] * 3
    assert [(part["first"], part["last"]) for part in certified("joined")[1]["blocks"]] == [(0, 2), (2, 5), (5, 7)]
    assert kinds["overlap"] == ["dense"] * 3
    assert kinds["blocks"] == ["dense"] * 4
    assert (kinds["dense"], kinds["torus"], kinds["window"]) == (["dense"], ["torus"], ["torus"])
    assert kinds["product"] == ["product"]
    assert [(part["cut"], part["window"]) for way in ("torus", "window") for part in certified(way)[1]["problems"]] == [
        (4, False),
        (2, True),
    ]


# -- another model


def other(network, *, weight=None, op=None):
    """The network with one weight or one operation, (key or index, value), replaced."""
    nodes, weights = list(network.nodes), dict(network.weights)
    if weight is not None:
        weights[weight[0]] = weight[1]
    if op is not None:
        nodes[op[0]] = replace(nodes[op[0]], op=op[1])
    return Network(tuple(nodes), weights)


def nudged(network):
    """The network with one weight the next number up."""
    array = network.weights["w1"].copy()
    array.flat[5] = np.nextafter(array.flat[5], math.inf)
    return other(network, weight=("w1", array))


def scaled(network, factor):
    return other(network, weight=("w1", network.weights["w1"] * factor))


@pytest.mark.parametrize("way", WAYS)
def test_other_models(way):
    network, values, arrays = certified(way)
    written = files(values, arrays)
    refused(nudged(network), *written, "the model", "the same architecture with other weights")
    single = {key: np.float32(array) for key, array in network.weights.items()}
    refused(Network(network.nodes, single), *written, "the model", "another architecture")
    refused(other(network, op=(2, act.silu())), *written, "the model", "another architecture")
    refused(tiled(length=10), *written, "the model", f"input shape {network.input_shape}", "(1, 10)")
    grown = Network((*network.nodes[:-1], replace(network.nodes[-1], shape=(9, 9))), network.weights)
    refused(grown, *written, "the model", "output shape", "(9, 9)")


def claimed_of(way, network):
    """The fields of the certificate of a way as if it were about another network."""
    return edited(way, {"model.graph": graph_hash(network), "model.weights": weights_hash(network)})


@pytest.mark.parametrize("way", WAYS)
def test_hashes_of_the_whole_do_not_stand_for_the_parts(way):
    network, _, arrays = certified(way)
    forged = claimed_of(way, nudged(network))
    refused(nudged(network), *files(forged, arrays), "sub-problem ", "about another network")


@pytest.mark.parametrize("way", ["dense", "torus", "window", "product"])
@pytest.mark.parametrize("factor", [1.01, 3.0, -1.0])
def test_with_every_hash_forged_the_multipliers_still_speak_for_the_weights(way, factor):
    network, _, arrays = certified(way)
    changed_network = scaled(network, factor)
    forged = changed(claimed_of(way, changed_network), "problems.0.content", changed_network.content_hash())
    written = files(forged, arrays)
    if factor != -1.0:
        refused(changed_network, *written, "sub-problem 0 (")
        return
    try:
        bound = verify(*written, changed_network).bound
    except VerificationError:
        return
    assert bound >= worst_slopes(changed_network, 0)


# -- claims


@pytest.mark.parametrize(
    ("way", "factor"), [*((way, 0.99) for way in WAYS), ("joined", 1.0 - 1e-8), ("torus", 1.0 - 1e-8), ("dense", 0.0)]
)
def test_claims_that_are_too_low_are_named(way, factor):
    network, values, arrays = certified(way)
    parts = [
        *((f"problems.{number}.claim", f"sub-problem {number} (") for number in range(len(values["problems"]))),
        *((f"blocks.{number}.claim", f"block{number + 1}: ") for number in range(len(values["blocks"]))),
        ("claim", "the whole network: "),
    ]
    for place, part in parts:
        lowered = edited(way, {place: lambda claim: claim * factor})
        refused(network, *files(lowered, arrays), part, "is claimed, and what it proves is")


def test_claims_do_not_enter_the_result():
    network, values, arrays = certified("overlap")
    bound = verify(*files(values, arrays), network).bound
    for claim in (values["claim"] * (1.0 - TOLERANCE / 2), values["claim"] * 2, HUGE, 1.7976931348623157e308):
        assert verify(*files(changed(values, "claim", claim), arrays), network).bound == bound
    assert verify(*files(free(values), arrays), network).bound == bound


def test_no_claim_makes_an_infinite_bound_finite():
    """Two blocks of finite bounds whose product is none; beyond the largest number a tolerance knows no bounds."""
    largest = 1.7976931348623157e308
    parts = tuple(BlockCheck(f"block{i}", "whole", (i - 1,), ((),), largest) for i in (1, 2))
    problems = tuple(Problem(f"sub-problem {i}", NETWORKS["tiled"], Proof("product"), largest) for i in (0, 1))
    assert conclude(Unfolded(problems, parts, largest), [1e200, 1e100]).bound == pytest.approx(1e300)
    with pytest.raises(VerificationError, match=r"^the whole network: .*proves is inf"):
        conclude(Unfolded(problems, parts, largest), [1e200, 1e200])
    with pytest.raises(VerificationError, match=r"^sub-problem 1: .*proves is nan"):
        conclude(Unfolded(problems, parts, largest), [1e200, math.nan])


# -- structure


def windows(*spans):
    """A change of the tiles: these windows, in place of their own."""
    return lambda tiles: [tile | {"window": [list(span)]} for tile, span in zip(tiles, spans, strict=True)]


def numbers(*problems):
    """A change of the tiles: these sub-problems, in place of their own."""
    return lambda tiles: [tile | {"problem": number} for tile, number in zip(tiles, problems, strict=True)]


@pytest.mark.parametrize(
    ("way", "changes", "says"),
    [
        # Tiles that overlap, leave a hole, or are windows of nothing.
        ("overlap", {"blocks.0.tiles.1.window": [[2, 6]]}, ["block1: its tiles overlap", "((2, 6),)"]),
        ("overlap", {"blocks.0.tiles": lambda tiles: [*tiles, tiles[1]]}, ["block1: its tiles overlap"]),
        ("overlap", {"blocks.0.tiles.1.window": [[3, 5]]}, ["block1: its tiles leave positions"]),
        ("overlap", {"blocks.0.tiles": lambda tiles: tiles[:-1]}, ["block1: its tiles leave positions"]),
        ("sum", {"blocks.0.tiles": lambda tiles: tiles[1:]}, ["block1: its tiles leave positions"]),
        ("overlap", {"blocks.0.tiles.2.window": [[6, 10]]}, ["block1: ((6, 10),) is no window"]),
        ("overlap", {"blocks.0.tiles.2.window": [[6, 6]]}, ["block1: ((6, 6),) is no window"]),
        ("overlap", {"blocks.0.tiles.2.window": [[9, 6]]}, ["block1: ((9, 6),) is no window"]),
        ("overlap", {"blocks.0.tiles.2.window": []}, ["block1: () is no window"]),
        ("overlap", {"blocks.0.tiles.2.window": [[6, 9], [0, 1]]}, ["block1: ", "is no window"]),
        ("blocks", {"blocks.1.tiles.0.window": [[0, 4]]}, ["block2: its tiles overlap"]),
        ("dense", {"blocks.0.composition": "sum"}, ["block1: it has tiles, and is no map"]),
        ("joined", {"blocks.1.composition": "overlap"}, ["block2: () is no window"]),
        ("overlap", {"blocks.0.composition": "whole"}, ["block1: it is solved whole, and has tiles"]),
        (
            "overlap",
            {"blocks.0.composition": "whole", "blocks.0.tiles": lambda tiles: tiles[:1]},
            ["block1: it is solved whole, and has tiles"],
        ),
        # Sub-problems that are not those of their tiles.
        ("overlap", {"blocks.0.tiles": windows((0, 2), (2, 6), (6, 9))}, ["sub-problem 0 (", "about another network"]),
        ("overlap", {"blocks.0.tiles": windows((6, 9), (3, 6), (0, 3))}, ["sub-problem 0 (", "about another network"]),
        ("overlap", {"blocks.0.tiles": numbers(2, 1, 0)}, ["sub-problem 0 (", "about another network"]),
        ("overlap", {"blocks.0.tiles": numbers(0, 1, 0)}, ["block1: a tile is not the one that sub-problem 0"]),
        ("overlap", {"blocks.0.tiles": numbers(0, 1, 3)}, ["block1: it names sub-problem 3, and there is none"]),
        ("overlap", {"blocks.0.tiles.0.restricted": True}, ["sub-problem 0 (", "about another network"]),
        ("overlap", {"blocks.0.composition": "whole", "blocks.0.tiles": WHOLE}, ["sub-problem 0 (", "another network"]),
        ("overlap", {"problems.1.content": "0" * 64}, ["sub-problem 1 (", "about another network"]),
        ("overlap", {"problems": lambda parts: [*parts, parts[0]]}, ["sub-problem 3: no block uses it"]),
        ("overlap", {"problems": lambda parts: parts[:-1]}, ["block1: it names sub-problem 2, and there is none"]),
        ("blocks", {"blocks.1.tiles": lambda tiles: [tile | {"problem": 0} for tile in tiles]}, ["block2: a tile is"]),
        (
            "joined",
            {"blocks.1.tiles.0.problem": 2, "blocks.2.tiles.0.problem": 1},
            ["sub-problem 1 (", "another network"],
        ),
        ("joined", {"blocks.2.tiles.0.problem": 0}, ["block3: a tile is not the one that sub-problem 0"]),
        # Blocks that leave something out, go twice over something, or end where no cut is possible.
        ("joined", {"blocks.1.first": 5}, ["block2: it goes from node 5 to 5"]),
        ("joined", {"blocks.1.first": 1}, ["block2: it goes from node 1 to 5"]),
        ("joined", {"blocks.0.first": 1}, ["block1: it goes from node 1 to 2"]),
        ("joined", {"blocks.0.last": 3, "blocks.1.first": 3}, ["block1: it goes from node 0 to 3"]),
        ("joined", {"blocks.0.last": 0, "blocks.1.first": 0}, ["block1: it goes from node 0 to 0"]),
        ("joined", {"blocks.2.last": 6}, ["the last block: it ends at node 6"]),
        ("joined", {"blocks.2.last": 8}, ["block3: it goes from node 5 to 8"]),
        ("joined", {"blocks.2.last": 3}, ["block3: it goes from node 5 to 3"]),
        ("joined", {"blocks": lambda blocks: blocks[:2]}, ["the last block: it ends at node 5"]),
        ("joined", {"blocks": lambda blocks: [blocks[0], blocks[2]]}, ["block2: it goes from node 5 to 7"]),
        ("joined", {"blocks": lambda blocks: [*blocks, blocks[-1]]}, ["block4: it goes from node 5 to 7"]),
        ("joined", {"blocks": lambda blocks: blocks[::-1]}, ["block1: it goes from node 5 to 7"]),
        ("joined", {"blocks.0.last": 1, "blocks.1.first": 1}, ["sub-problem 0 (", "another network"]),
        # Proofs of another kind, or on other tori.
        ("torus", {"problems.0.sides": [[7, 7]]}, ["sub-problem 0 (", "tori of ((7, 7),)", "needs ((6, 6),)"]),
        ("torus", {"problems.0.sides": []}, ["sub-problem 0 (", "tori of ()"]),
        ("torus", {"problems.0.sides": [[6, 6], [6, 6]]}, ["sub-problem 0 (", "tori of ((6, 6), (6, 6))"]),
        ("torus", {"problems.0.sides": [[7]]}, ["sub-problem 0 (", "tori of ((7,),)"]),
        ("torus", {"problems.0.cut": 0}, ["sub-problem 0 (", "tori of ((6, 6),)", "needs"]),
        ("torus", {"problems.0.cut": 2}, ["sub-problem 0 (", "the activation layer ('activation4', 2)"]),
        ("torus", {"problems.0.cut": 5}, ["sub-problem 0 (", "cannot be carried", "after node 5"]),
        ("torus", {"problems.0.cut": 7}, ["sub-problem 0 (", "after node 7, and there is no such node"]),
        ("torus", {"problems.0.cut": 2**31 - 1}, ["sub-problem 0 (", "there is no such node"]),
        ("window", {"problems.0.cut": 4}, ["sub-problem 0 (", "the activation layer ('activation4', 50)"]),
        ("window", {"problems.0.cut": None}, ["sub-problem 0 ("]),
        ("torus", {"problems.0.kind": "dense"}, ["sub-problem 0 (", "speaks of tori"]),
        ("torus", {"problems.0.kind": "product"}, ["sub-problem 0 (", "speaks of tori"]),
        (
            "torus",
            {"problems.0.kind": "dense", "problems.0.cut": None, "problems.0.sides": []},
            ["sub-problem 0 (", "the activation layer ('activation2', 2), where its network has ('activation2', 50)"],
        ),
        ("dense", {"problems.0.kind": "torus"}, ["sub-problem 0 (", "tori of (), and its network needs ((6, 6),)"]),
        (
            "dense",
            {"problems.0.kind": "torus", "problems.0.sides": [[6, 6]]},
            ["sub-problem 0 (", "the activation layer ('activation2', 50), where its network has ('activation2', 2)"],
        ),
        ("dense", {"problems.0.cut": 2}, ["sub-problem 0 (", "speaks of tori"]),
        ("dense", {"problems.0.window": True}, ["sub-problem 0 (", "speaks of tori"]),
        ("product", {"problems.0.sides": [[6, 6]]}, ["sub-problem 0 (", "speaks of tori"]),
        (
            "product",
            {"problems.0.kind": "dense"},
            ["sub-problem 0 (", "layer None, where its network has ('activation2'"],
        ),
        (
            "dense",
            {"problems.0.kind": "product"},
            ["sub-problem 0 (", "('activation2', 50), where its network has None"],
        ),
        ("dense", {"problems.0.layers.1.name": "relu"}, ["sub-problem 0 (", "('relu', 50)", "('activation4', 50)"]),
        ("dense", {"problems.0.layers.0.name": "a\nb"}, ["sub-problem 0 (", "('a\\nb', 50)"]),
        (
            "dense",
            {"problems.0.layers": lambda layers: layers[::-1]},
            ["sub-problem 0 (", "('activation4', 50), where"],
        ),
    ],
)
def test_structures_that_are_not_the_networks(way, changes, says):
    network, _, arrays = certified(way)
    values = edited(way, changes)
    for layer, part in enumerate(values["problems"][-1]["layers"]):
        # Another sub-problem brings its arrays, so that only what is said of it is wrong.
        arrays = {array_name(len(values["problems"]) - 1, layer): np.ones(part["width"]), **arrays}
    wanted = {array_name(n, k) for n, part in enumerate(values["problems"]) for k in range(len(part["layers"]))}
    refused(network, *files(values, {key: array for key, array in arrays.items() if key in wanted}), *says)


@pytest.mark.parametrize("kept", [0, 1])
def test_layers_left_out_and_layers_too_many(kept):
    network, values, arrays = certified("dense")
    fewer = changed(values, "problems.0.layers", lambda layers: layers[:kept])
    missing = f"None, where its network has ('activation{2 * kept + 2}', 50)"
    refused(network, *files(fewer, {f"0-{n}": arrays[f"0-{n}"] for n in range(kept)}), "sub-problem 0 (", missing)
    more = changed(values, "problems.0.layers", lambda layers: [*layers, layers[kept]])
    refused(network, *files(more, arrays | {"0-2": np.ones(50)}), "sub-problem 0 (", "where its network has None")


def test_other_structures_that_prove_as_much_are_as_good():
    network, values, arrays = certified("overlap")
    bound = verify(*files(values, arrays), network).bound
    turned = changed(values, "blocks.0.tiles", lambda tiles: tiles[::-1])
    assert verify(*files(turned, arrays), network).bound == pytest.approx(bound, rel=1e-14)
    network, values, arrays = certified("torus")
    implied = changed(values, "problems.0.cut", None)
    assert verify(*files(implied, arrays), network).bound == values["claim"]
    network, values, arrays = certified("sum")
    better = verify(*files(changed(values, "blocks.0.composition", "overlap"), arrays), network)
    assert LOWER["tiled"] <= better.bound < values["claim"]


def test_the_blocks_bound_stands_in_for_a_tile():
    """As where a tile was lost: the restricted tile has the bound of the whole block, which proves less."""
    network, values, arrays = certified("overlap")
    [stand_in] = by_hand(network, "product")[0]["problems"]
    stand_in["claim"] = product_bound(network)
    tile = {"window": [[3, 6]], "problem": 1, "restricted": True}
    weaker = edited("overlap", {"problems.1": stand_in, "blocks.0.tiles.1": tile})
    own = {key: array for key, array in arrays.items() if not key.startswith("1-")}
    refused(network, *files(weaker, own), "block1: ", "is claimed")
    verdict = verify(*files(free(weaker), own), network)
    assert verdict.problems[1] == product_bound(network)
    assert verdict.bound > max(product_bound(network), values["claim"])
    refused(network, *files(changed(free(weaker), "blocks.0.tiles.1.restricted", value=False), own), "sub-problem 1 (")


# -- multipliers


OUT_OF_RANGE = [math.nan, -1.0, -1e-310, -0.0, 0.0, math.inf, -math.inf, 5e-324, LEAST / 2, LARGEST * 2]


@pytest.mark.parametrize(
    ("way", "name", "place", "where"),
    [
        ("dense", "0-0", 0, "sub-problem 0 (conv1..dense6, ellipsoid): the multipliers of activation2 "),
        ("dense", "0-1", 49, "sub-problem 0 (conv1..dense6, ellipsoid): the multipliers of activation4 "),
        ("torus", "0-1", 1, "sub-problem 0 (conv1..dense6, frequency): the multipliers of activation4 "),
        ("window", "0-0", 0, "sub-problem 0 (conv1..dense6, hybrid): the multipliers of activation2 "),
        ("window", "0-1", 7, "sub-problem 0 (conv1..dense6, hybrid): the multipliers of activation4 "),
        ("overlap", "1-2", 3, "sub-problem 1 (conv1..activation8, ellipsoid): the multipliers of activation6 "),
    ],
)
def test_multipliers_that_are_no_positive_numbers(way, name, place, where):
    for value in OUT_OF_RANGE if name == "0-1" else OUT_OF_RANGE[:5:2]:
        network, values, arrays = certified(way)
        changed_array = arrays[name].copy()
        changed_array[place] = value
        written = files(free(values), arrays | {name: changed_array})
        refused(network, *written, where, f"number {place} is {value}")


@pytest.mark.parametrize("way", ["dense", "torus", "window", "overlap"])
@pytest.mark.parametrize("factor", [3.0, 1e6])
def test_infeasible_multipliers(way, factor):
    network, values, arrays = certified(way)
    every = {key: array * factor for key, array in arrays.items()}
    refused(network, *files(free(values), every), "sub-problem 0 (", "not feasible")
    number = len(values["problems"]) - 1
    last = {key: array * (factor if key.startswith(f"{number}-") else 1.0) for key, array in arrays.items()}
    refused(network, *files(free(values), last), f"sub-problem {number} (", "not feasible")


@pytest.mark.parametrize("way", ["dense", "torus", "window", "overlap"])
def test_small_multipliers_prove_little(way):
    """They are feasible, and the bound that they prove is far above what is claimed."""
    network, values, arrays = certified(way)
    small = {key: array * 1e-3 for key, array in arrays.items()}
    refused(network, *files(values, small), "sub-problem 0 (", "is claimed")
    assert verify(*files(free(values), small), network).bound > 3 * values["claim"]


def test_swapped_multipliers():
    """Of layers and of tiles of equal widths: they are others' and prove less, or nothing."""
    for way, pairs in (("overlap", [("0-0", "0-1"), ("1-0", "1-3"), ("0-0", "2-0")]), ("torus", [("0-0", "0-1")])):
        network, values, arrays = certified(way)
        for one, two in pairs:
            assert arrays[one].shape == arrays[two].shape
            swapped = arrays | {one: arrays[two], two: arrays[one]}
            # Which of the two is refused first depends on whether one of them is infeasible.
            said = refused(network, *files(values, swapped), "sub-problem ")
            assert said.startswith((f"sub-problem {one[0]} (", f"sub-problem {two[0]} ("))
            holds(WAYS[way][0], files(free(values), swapped))


# -- whatever passes is a bound


def holds(name, written):
    """Verify: it is refused, or the bound is one, and no part is above its claim."""
    record, arrays = written
    try:
        verdict = verify(record, arrays, NETWORKS[name])
    except VerificationError:
        return False
    assert verdict.bound >= LOWER[name]
    assert verdict.bound <= record.claim * (1.0 + TOLERANCE)
    assert all(
        bound <= part.claim * (1.0 + TOLERANCE)
        for bounds, parts in ((verdict.blocks, record.blocks), (verdict.problems, record.problems))
        for bound, part in zip(bounds, parts, strict=True)
    )
    return True


@pytest.mark.parametrize("way", ["dense", "torus", "window", "overlap", "blocks"])
def test_a_byte_of_a_multiplier_changed_where_nothing_else_guards_it(way):
    """Hashes are made right again, and claims are high: what is verified then is still a bound."""
    _, values, arrays = certified(way)
    draw = np.random.default_rng(0)
    passed = 0
    for turn in range(24):
        tampered = {key: array.copy() for key, array in arrays.items()}
        array = tampered[sorted(arrays)[turn % len(arrays)]]
        octets = array.view(np.uint8)
        # All bytes of a number have their turn, those of its exponent among them.
        octets[8 * draw.integers(len(array)) + turn % 8] ^= draw.integers(1, 256)
        passed += holds(WAYS[way][0], files(free(values), tampered))
        assert not np.array_equal(array, arrays[sorted(arrays)[turn % len(arrays)]])
    assert 3 <= passed < 24


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(["dense", "torus", "window", "overlap"]), st.randoms(use_true_random=False), st.floats(-12, 1))
def test_any_multipliers_prove_a_bound_or_nothing(way, random, reach):
    _, values, arrays = certified(way)
    drawn = {key: array * [10 ** random.uniform(reach - 1, reach) for _ in array] for key, array in arrays.items()}
    holds(WAYS[way][0], files(free(values), drawn))


def signed_again(text, position):
    """The certificate with one byte of its JSON changed and its digest made right; ``None`` where it is none."""
    tampered = bytearray(text)
    tampered[position] ^= 1 << position % 4
    try:
        plain = json.loads(tampered)
        return decode(NAME, json.dumps({**plain, "digest": digest_of(plain)}).encode())
    except (ValueError, CertificateError):
        return None


@pytest.mark.parametrize("way", ["overlap", "joined", "torus", "window"])
def test_a_byte_of_the_json_changed_and_signed_again(way):
    """Whatever still is a certificate of these arrays is refused, or proves what it proved."""
    network, values, arrays = certified(way)
    record, _ = files(values, arrays)
    text = record.model_dump_json().encode()
    bound = verify(record, arrays, network).bound
    refusals = passed = 0
    for position in np.random.default_rng(1).permutation(len(text))[:200]:
        found = signed_again(text, int(position))
        if found is None or expected_arrays(found) != expected_arrays(record):
            continue
        try:
            assert verify(found, arrays, network).bound == bound
            passed += 1
        except VerificationError:
            refusals += 1
    assert passed > 5
    assert refusals > 5


@pytest.mark.parametrize("kind", ["product", "dense", "torus"])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_cut_and_kind_is_refused_or_proves_a_bound(name, kind):
    """All places where a torus might be left, real or not, with multipliers that fit them."""
    network = NETWORKS[name]
    cuts = [None, *range(len(network.nodes) + 2)] if kind == "torus" else [None]
    ways = itertools.product(cuts, (False, True) if kind == "torus" else (False,))
    proven = [holds(name, files(*by_hand(network, kind, cut=cut, window=window))) for cut, window in ways]
    assert any(proven)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_windows_are_refused_or_prove_a_bound(data):
    """Cut anywhere, in any order; the bound of each tile is the product of its own norms, or of the block's."""
    network, values, _ = certified("overlap")
    edges = sorted({0, 9, *data.draw(st.lists(st.integers(0, 9), max_size=4))})
    pieces = list(itertools.pairwise(edges))
    own = {tile.output[0]: tile.network.content_hash() for tile in cut_tiles(network, [(piece,) for piece in pieces])}
    spans = data.draw(st.permutations(pieces))
    if data.draw(st.integers(0, 3)) == 0:
        spans = [*spans, data.draw(st.tuples(st.integers(0, 10), st.integers(0, 10)))]
    problems, tiles = {}, []
    for span in spans:
        restricted = span not in own or data.draw(st.booleans())
        content = network.content_hash() if restricted else own[span]
        number = problems.setdefault(content, len(problems))
        tiles.append({"window": [list(span)], "problem": number, "restricted": restricted})
    [product] = by_hand(network, "product")[0]["problems"]
    values = changed(free(values), "problems", [product | {"content": content} for content in problems])
    values = changed(values, "blocks.0.tiles", tiles)
    assert holds("tiled", files(values, {})) == (sorted(spans) == pieces)


@pytest.mark.parametrize("log", [False, True])
def test_a_last_softmax_counts(log):
    """Its constant is part of the bound: 1/2, or the root of the number of classes."""
    maps = Maps(3, seed=5)
    maps.dense(4)
    maps.act()
    maps.dense(4)
    logits = maps.network()
    maps.nodes.append(Node("softmax", Softmax(log), (maps.last,), (4,)))
    network = maps.network()
    values, arrays = certify(network, method="ellipsoid")
    alone, _ = certify(logits, method="ellipsoid")
    assert verify(*files(values, arrays), network).bound == pytest.approx(alone["claim"] * (2.0 if log else 0.5))
    forged = changed(alone, "problems.0.content", values["problems"][0]["content"]) | {"model": values["model"]}
    forged = changed(forged, "blocks.0.last", 4)
    if log:
        refused(network, *files(forged, arrays), "sub-problem 0 (", "is claimed")
    refused(network, *files(alone, arrays), "the model", "another architecture")
