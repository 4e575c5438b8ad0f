"""A certificate against a network: every sub-problem rebuilt, proven again from its multipliers, and composed.

Nothing of the certificate is believed but its multipliers, and those only have to be feasible. What is compared with
its claims is recomputed here from the network's weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lipray.errors import VerificationError
from lipray.model.network import Network
from lipray.verify.composition import compose_blocks, diagonal_bound, overlap_bound, sum_bound
from lipray.verify.cover import covering_tiles
from lipray.verify.cuts import cut_positions, sub_network
from lipray.verify.identity import graph_hash, weights_hash
from lipray.verify.prove import Problem, Proof, prove
from lipray.verify.record import BlockPart, CertificateRecord, ProblemPart, array_name
from lipray.verify.tiles import CutTile, Window
from lipray.verify.weights import tile_weights, weighted_tiles

TOLERANCE = 1e-9
"""How far a recomputed figure may be above the claimed one, relatively: libraries differ in their last digits."""


@dataclass(frozen=True, slots=True)
class BlockCheck:
    """How a block's bound is composed: per tile the number of its sub-problem, its receptive field and its weights.

    ``weights`` are for the diagonal composition; ``None`` for a tile that the whole block's bound stands for.
    """

    label: str
    composition: str
    problems: tuple[int, ...]
    fields: tuple[Window, ...]
    claim: float
    input_shape: tuple[int, ...] = ()
    weights: tuple[np.ndarray | None, ...] = ()


@dataclass(frozen=True, slots=True)
class Unfolded:
    """A certificate laid out on its network: what has to be proven, and how it is composed."""

    problems: tuple[Problem, ...]
    blocks: tuple[BlockCheck, ...]
    claim: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was verified: the bound of the whole network, recomputed, and of every block and sub-problem."""

    bound: float
    blocks: tuple[float, ...]
    problems: tuple[float, ...]


def verify(
    record: CertificateRecord,
    arrays: Mapping[str, np.ndarray],
    network: Network,
    proven: Callable[[Sequence[Problem]], Sequence[float]] | None = None,
) -> Verdict:
    """Check a certificate against the network it speaks of.

    Args:
        record: the certificate.
        arrays: its multipliers.
        network: the whole network, its outputs selected as the certificate says.
        proven: proves sub-problems somewhere, bounds in order; by default here, one after the other.

    Returns:
        The recomputed bound: ‖f(x) − f(y)‖ ≤ bound · ‖x − y‖ in exact arithmetic of the stored weights.

    Raises:
        VerificationError: naming the part that fails.
    """
    unfolded = unfold(record, arrays, network)
    bounds = in_turn(unfolded.problems) if proven is None else proven(unfolded.problems)
    return conclude(unfolded, bounds)


def in_turn(problems: Sequence[Problem]) -> list[float]:
    """Prove sub-problems one after the other."""
    return [prove(problem).bound for problem in problems]


def unfold(record: CertificateRecord, arrays: Mapping[str, np.ndarray], network: Network) -> Unfolded:
    """Lay a certificate out on its network.

    Raises:
        VerificationError: it is about another network, or does not fit it.
    """
    _same_model(record, network)
    cuts = {0, *cut_positions(network)}
    found: dict[int, Network] = {}
    blocks = []
    reached = 0
    for number, part in enumerate(record.blocks, start=1):
        label = f"block{number}"
        if part.first != reached or part.last <= part.first or part.last not in cuts:
            raise VerificationError(label, f"it goes from node {part.first} to {part.last}, which is no block there")
        reached = part.last
        blocks.append(_block(label, sub_network(network, part.first, part.last), part, found, record))
    if reached != len(network.nodes) - 1:
        raise VerificationError("the last block", f"it ends at node {reached}, before the network does")
    problems = []
    for number, problem in enumerate(record.problems):
        if number not in found:
            raise VerificationError(f"sub-problem {number}", "no block uses it")
        problems.append(_problem(f"sub-problem {number}", problem, number, arrays, found[number]))
    return Unfolded(tuple(problems), tuple(blocks), record.claim)


def conclude(unfolded: Unfolded, bounds: Sequence[float]) -> Verdict:
    """Compose proven bounds of all sub-problems, and compare with what is claimed.

    Raises:
        VerificationError: a figure is above its claim.
    """
    for problem, bound in zip(unfolded.problems, bounds, strict=True):
        _within(problem.label, problem.claim, bound)
    blocks = []
    for block in unfolded.blocks:
        own = [bounds[number] for number in block.problems]
        match block.composition:
            case "whole":
                bound = own[0]
            case "overlap":
                bound = overlap_bound(own, block.fields)
            case "diagonal":
                bound = diagonal_bound(own, block.fields, block.weights, block.input_shape)
            case _:
                bound = sum_bound(own)
        _within(block.label, block.claim, bound)
        blocks.append(bound)
    whole = compose_blocks(blocks)
    _within("the whole network", unfolded.claim, whole)
    return Verdict(whole, tuple(blocks), tuple(bounds))


def _same_model(record: CertificateRecord, network: Network) -> None:
    model = record.model
    for what, claimed, given in (
        ("input shape", model.input_shape, network.input_shape),
        ("output shape", model.output_shape, network.output_shape),
    ):
        if tuple(claimed) != tuple(given):
            raise VerificationError("the model", f"the certificate is for {what} {claimed}, and this has {given}")
    if model.graph != graph_hash(network):
        raise VerificationError("the model", "the certificate is for a network of another architecture")
    if model.weights != weights_hash(network):
        raise VerificationError("the model", "the certificate is for the same architecture with other weights")


def _block(
    label: str, block: Network, part: BlockPart, found: dict[int, Network], record: CertificateRecord
) -> BlockCheck:
    if part.composition == "whole":
        if len(part.tiles) != 1 or part.tiles[0].window:
            raise VerificationError(label, "it is solved whole, and has tiles")
        tiles: Sequence[CutTile] = (CutTile((), (), block),)
    else:
        tiles = covering_tiles(label, block, [tile.window for tile in part.tiles])
    weights: tuple[np.ndarray | None, ...] = (None,) * len(tiles)
    if part.composition == "diagonal":
        given = tile_weights([tile.output for tile in tiles], [tile.field for tile in tiles], block.input_shape)
        weights = tuple(None if tile.restricted else own for tile, own in zip(part.tiles, given, strict=True))
        tiles = weighted_tiles(tiles, given)
    for tile, own in zip(part.tiles, tiles, strict=True):
        network = block if tile.restricted else own.network
        number = tile.problem
        if number >= len(record.problems):
            raise VerificationError(label, f"it names sub-problem {number}, and there is none")
        if (
            found.setdefault(number, network) is not network
            and record.problems[number].content != network.content_hash()
        ):
            raise VerificationError(label, f"a tile is not the one that sub-problem {number} is about")
    fields = tuple(tile.field for tile in tiles)
    problems = tuple(tile.problem for tile in part.tiles)
    return BlockCheck(label, part.composition, problems, fields, part.claim, block.input_shape, weights)


def _problem(label: str, part: ProblemPart, number: int, arrays: Mapping[str, np.ndarray], network: Network) -> Problem:
    """One sub-problem, about the network that a block has in its place."""
    label = f"{label} ({network.nodes[min(1, len(network.nodes) - 1)].name}..{network.nodes[-1].name}, {part.method})"
    if part.content != network.content_hash():
        raise VerificationError(label, "it is about another network than the block's")
    if part.kind != "torus" and (part.cut is not None or part.window or part.sides):
        raise VerificationError(label, "it speaks of tori, and its proof has none")
    multipliers = tuple(arrays[array_name(number, layer)] for layer in range(len(part.layers)))
    if part.kind != "metric" and part.windows:
        raise VerificationError(label, "it speaks of tiles, and its proof has none")
    layers = tuple((layer.name, layer.width) for layer in part.layers)
    proof = Proof(part.kind, multipliers, layers, part.cut, part.window, part.sides, part.windows)
    return Problem(label, network, proof, part.claim)


def _within(label: str, claim: float, bound: float) -> None:
    if not (math.isfinite(bound) and bound <= claim * (1.0 + TOLERANCE)):
        raise VerificationError(label, f"{claim!r} is claimed, and what it proves is {bound!r}")
