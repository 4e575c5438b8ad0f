"""The reducer: certificates of sub-problems in, one bound of the network out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from lipray.certify.certificate import Certificate
from lipray.compose.bound import BlockBound, Bound
from lipray.compose.depth import depth_bound, depth_figures
from lipray.compose.space import overlap_bound, sum_bound
from lipray.errors import SolveError, UsageError
from lipray.partition.plan import Block, Plan
from lipray.partition.worklist import Worklist, worklist

COMPOSITIONS = ("overlap", "sum")
"""Ways to put tiles together; the first is the default."""


def compose(
    plan: Plan,
    certificates: Mapping[str, Certificate],
    products: Sequence[Certificate | None] | None = None,
    *,
    composition: str = "overlap",
    work: Worklist | None = None,
) -> Bound:
    """Compose certified bounds of sub-problems to a bound of the whole network.

    Per block: the tiles' bounds by ``composition``, or the bound of the block solved whole, and beside it
    the block's product bound; the smaller is used, and all are reported. A tile without a certificate
    is given the block's product bound, which is valid because the tile's map is a restriction of the block's:
    fewer outputs of inputs of which it ignores some. It is named in ``fallbacks``.

    The result depends on the plan and the certificates' bounds only, not on their order.

    Args:
        plan: the plan the sub-problems were taken from.
        certificates: by ``Subproblem.key()``; may be incomplete.
        products: product bound of every block, or ``None`` to take them from ``certificates``.
        composition: "overlap" or "sum".
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
        _block(block, product, certificates, keys=work.tiles, method=plan.method, composition=composition)
        for block, product in zip(plan.blocks, products, strict=True)
    )
    known = dict(certificates)
    known.update({product.key: product for product in products if product is not None})
    return Bound(
        upper=depth_bound(blocks),
        lower=0.0,
        method=plan.method,
        blocks=blocks,
        certificate={key: known[key] for key in sorted(known)},
        figures=depth_figures(blocks),
    )


def _block(
    block: Block,
    product: Certificate | None,
    certificates: Mapping[str, Certificate],
    *,
    keys: Mapping[str, str],
    method: str,
    composition: str,
) -> BlockBound:
    fallback = None if product is None else _checked(product, f"{block.label} product")
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
    tiled = any(tile.output for tile in block.tiles)
    if tiled:
        alternatives["overlap"] = overlap_bound(bounds, [tile.field for tile in block.tiles])
        alternatives["sum"] = sum_bound(bounds)
    elif bounds and not missing:
        alternatives[method] = bounds[0]
    if fallback is not None:
        alternatives["product"] = min(fallback, alternatives.get("product", fallback))
    allowed = [composition if tiled else method, "product"]
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
    )


def _checked(certificate: Certificate, label: str) -> float:
    """The bound as a float, refused if it cannot be an upper bound."""
    bound = float(certificate.bound)
    if math.isnan(bound) or bound < 0.0:
        raise SolveError(label, f"its certificate's bound is {bound}, which is no upper bound")
    return abs(bound)
