"""The reducer: certificates of sub-problems in, one bound of the network out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from lipray.certify.certificate import Certificate
from lipray.compose.bound import BlockBound, Bound
from lipray.compose.depth import depth_bound, depth_figures
from lipray.errors import SolveError, UsageError
from lipray.model.network import Softmax
from lipray.partition.choice import AUTO
from lipray.partition.plan import Block, Plan
from lipray.partition.worklist import Worklist, worklist
from lipray.verify.composition import diagonal_bound, overlap_bound, sum_bound
from lipray.verify.weights import tile_weights

TORUS_WAYS = ("hybrid", "frequency", "closed_form")
"""Figures of a certificate that are certified bounds by ways of their own."""

COMPOSITIONS = ("metric", "diagonal", "overlap", "sum")
"""Ways to put tiles together, tightest first; the first is the default. By metrics a block is one sub-problem, and not
tiled for this reducer; where that takes too much memory its tiles are composed by diagonal metrics."""

TILED = frozenset({"diagonal", "overlap", "sum"})
"""Those of tiles that are sub-problems of their own."""


def compose(
    plan: Plan,
    certificates: Mapping[str, Certificate],
    products: Sequence[Certificate | None] | None = None,
    *,
    composition: str = "overlap",
    work: Worklist | None = None,
) -> Bound:
    """Compose certified bounds of sub-problems to a bound of the whole network.

    Per block: the tiles' bounds by ``composition``, or the bound of the block solved whole (under the name of the
    way that gave it), and beside it the block's product bound; the smaller is used, and all are reported. A tile
    without a certificate is given the block's product bound, which is valid because the tile's map is a
    restriction of the block's: fewer outputs of inputs of which it ignores some. It is named in ``fallbacks``.

    The result depends on the plan and the certificates' bounds only, not on their order.

    Args:
        plan: the plan the sub-problems were taken from.
        certificates: by ``Subproblem.key()``; may be incomplete.
        products: product bound of every block, or ``None`` to take them from ``certificates``.
        composition: one of ``COMPOSITIONS``. Weighted tiles have only one.
        work: ``worklist(plan)`` if it is at hand, to save hashing the networks again.

    Returns:
        The bound with ``lower`` = 0 and ``figures`` of the other ways to compose.

    Raises:
        UsageError: no such composition, or ``products`` of the wrong length.
        SolveError: a bound is NaN or negative, a certificate is stored under a key not its own, or a tile
            and its block's product bound are both missing.
    """
    if composition not in COMPOSITIONS:
        raise UsageError(
            "--composition", f"{composition!r} is not a composition", hint=f"Choose one of: {', '.join(COMPOSITIONS)}."
        )
    work = work or worklist(plan)
    if products is None:
        products = [certificates.get(key) for key in work.products]
    if len(products) != len(plan.blocks):
        raise UsageError("products", f"{len(products)} product bounds for {len(plan.blocks)} blocks")
    for key, certificate in certificates.items():
        if certificate.key != key:
            raise SolveError(key, f"its certificate says it belongs to {certificate.key}")
    blocks = tuple(
        _block(block, product, certificates, keys=work.tiles, composition=composition)
        for block, product in zip(plan.blocks, products, strict=True)
    )
    known = dict(certificates)
    known.update({product.key: product for product in products if product is not None})
    return Bound(
        upper=depth_bound(blocks),
        lower=0.0,
        method=_method(plan),
        blocks=blocks,
        certificate={key: known[key] for key in sorted(known)},
        figures=depth_figures(blocks),
    )


def _method(plan: Plan) -> str:
    """The method asked for, or those that the planner chose, in the order of the blocks."""
    return plan.method if plan.method != AUTO else " + ".join(dict.fromkeys(block.method for block in plan.blocks))


def _block(
    block: Block,
    product: Certificate | None,
    certificates: Mapping[str, Certificate],
    *,
    keys: Mapping[str, str],
    composition: str,
) -> BlockBound:
    fallback = None if product is None else _checked(product, f"{block.label} product")
    whole: Certificate | None = None
    bounds: list[float] = []
    missing: list[str] = []
    for tile in block.tiles:
        certificate = certificates.get(keys[tile.key])
        if certificate is not None:
            bounds.append(_checked(certificate, tile.label))
        elif fallback is not None:
            bounds.append(fallback)
            missing.append(tile.label)
        else:
            raise SolveError(tile.label, "it has no certificate, and its block has no product bound to stand in")
    alternatives: dict[str, float] = {}
    method = block.method
    tiled = any(tile.output for tile in block.tiles)
    if block.weighted:
        alternatives["diagonal"] = _diagonal(block, bounds, frozenset(missing))
    elif tiled:
        alternatives["overlap"] = overlap_bound(bounds, [tile.field for tile in block.tiles])
        alternatives["sum"] = sum_bound(bounds)
    elif bounds and not missing:
        whole = certificates[keys[block.tiles[0].key]]
        ways = {name: float(whole.figures[name]) for name in TORUS_WAYS if name in whole.figures}
        alternatives.update({name: value for name, value in ways.items() if value >= bounds[0]})
        method = next((name for name in (method, *TORUS_WAYS) if ways.get(name) == bounds[0]), method)
        alternatives[method] = bounds[0]
    if fallback is not None:
        alternatives["product"] = min(fallback, alternatives.get("product", fallback))
    of_tiles = "diagonal" if block.weighted else "sum" if composition == "sum" else "overlap"
    allowed = [of_tiles if tiled else method, "product"]
    choices = [name for name in allowed if name in alternatives]
    if not choices:
        raise SolveError(block.label, "it was left to its product bound, and that is missing")
    source = min(choices, key=lambda name: alternatives[name])
    return BlockBound(
        label=block.label,
        upper=alternatives[source],
        source=source,
        alternatives=alternatives,
        subproblems=len(block.tiles),
        distinct=len(block.distinct),
        fallbacks=tuple(missing),
        stages=() if whole is None else tuple((name, float(bound)) for name, bound in whole.stages),
        gram=None if whole is None else _gram(block, whole),
    )


def _diagonal(block: Block, bounds: Sequence[float], missing: frozenset[str]) -> float:
    """Of weighted tiles; the block's product bound stands for a missing one without its weights."""
    fields = [tile.field for tile in block.tiles]
    given = tile_weights([tile.output for tile in block.tiles], fields, block.input_shape)
    weights = [None if tile.label in missing else own for tile, own in zip(block.tiles, given, strict=True)]
    return diagonal_bound(bounds, fields, weights, block.input_shape)


def _gram(block: Block, certificate: Certificate) -> np.ndarray | None:
    """The output's shape matrix, if it is that of the block's outputs: for softmax it is that of the logits.

    Log-softmax subtracts the same number from all of them, which no difference of two notices.
    """
    last = block.network.nodes[-1].op
    gram = certificate.gram
    if gram is None or (isinstance(last, Softmax) and not last.log) or not np.isfinite(gram).all():
        return None
    return gram if gram.shape == (block.output_shape[-1],) * 2 and len(block.output_shape) == 1 else None


def _checked(certificate: Certificate, label: str) -> float:
    """The bound as a float, refused if it cannot be an upper bound."""
    bound = float(certificate.bound)
    if math.isnan(bound) or bound < 0.0:
        raise SolveError(label, f"its certificate's bound is {bound}, which is no upper bound")
    return abs(bound)
