"""The planner: blocks in depth, tiles in space, within the memory a sub-problem may use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from lipray.errors import PlanError, UsageError
from lipray.model.network import AdaptiveAvgPool, AvgPool, Concat, Conv, Dense, MaxPool, Network, Sum
from lipray.partition.choice import AUTO, Choice, choose, switch_in
from lipray.partition.cost import estimate_cost, fits, tiles_together
from lipray.partition.depth import activation_ends, split_depth
from lipray.partition.plan import Block, Plan, Tile
from lipray.partition.subproblem import METHODS, METRIC, TORUS_METHODS, Settings
from lipray.verify.cuts import sub_network
from lipray.verify.tiles import CutTile, cut_tiles, distinct_tiles, is_tileable, tile_windows
from lipray.verify.torus.layout import torus_cuts
from lipray.verify.weights import tile_weights, weighted_tiles

AUTOMATIC_TILING_SECONDS = 1800.0
"""Estimated seconds of a block's tiles beyond which only an explicit partition factor has it tiled.

With scalar composition tiles seldom beat the product bound they would replace: hours of them are for the user
to ask for.
"""

WEIGHTED = frozenset({"metric", "diagonal"})
"""Compositions whose tiles have weighted inputs, where they are sub-problems of their own."""
DENSE = frozenset({"ellipsoid", "sdp"})
"""Methods that gain by weights: norms of layers do not."""

_OPERATORS = (Conv, Dense, AvgPool, AdaptiveAvgPool, MaxPool, Sum, Concat)


def plan_network(
    network: Network,
    *,
    method: str = "ellipsoid",
    settings: Settings,
    partition_factor: int | None = None,
    block_depth: int | None = None,
    hand_over: bool = False,
    composition: str = "overlap",
) -> Plan:
    """Cut a network into blocks and tiles, each a sub-problem within ``settings.memory`` (estimated).

    Without a partition factor, blocks are solved whole where they fit, and otherwise tiled with the fewest,
    largest tiles that do, if that is estimated to take at most ``AUTOMATIC_TILING_SECONDS``. With p > 1 every
    block whose output is a map is tiled at least p x p (p in one dimension; an axis shorter than p into its
    positions), and a tile that does not fit is split further. A dense tail hides the maps before it, so a
    block that is to be tiled is cut before the tail; with no ``block_depth`` that is the only cut, as long as
    the parts can be made to fit, and otherwise blocks are as deep as p x p tiles of them fit. A block with
    one linear operator is left whole, because its product bound is already the best of these methods. A block
    that neither fits nor can be tiled has no tiles: the product bound stands for it.

    On tori nothing is tiled, since their frequencies are the sub-problems: the network is one block, or those of
    ``block_depth``. A block that is no part of the maps (a dense tail) is solved by the ellipsoid method.

    Args:
        network: the whole network.
        method: one of ``METHODS``, or "auto" to choose for every block, see ``lipray.partition.choice``.
        settings: of every sub-problem; ``memory`` is the cap in bytes.
        partition_factor: p, or ``None`` to search.
        block_depth: activation layers per block, or ``None`` for blocks as large as fit.
        hand_over: on tori, keep one problem in spite of a block depth: the shape matrix is handed from block to block.
        composition: how tiles are put together. "metric": a block that is tiled by the ellipsoid method is one
            sub-problem, solved by its tiles' metrics together, where that fits. Else, and by "diagonal", the tiles'
            inputs are weighted; by any other name ("overlap", "sum") they are not.

    Returns:
        The plan; ``partition_factor`` is the one asked for, or the largest one the search chose.

    Raises:
        UsageError: no such method, or no such switch.
        PlanError: the factor is below 1, larger than every map, or there is no map to tile; the block
            depth is below 1; a method on tori is asked for and there is no torus, or none that fits.
    """
    if method not in (AUTO, *METHODS):
        names = ", ".join((AUTO, *METHODS))
        raise UsageError("--method", f"{method!r} is not a method", hint=f"Choose one of: {names}.")
    if partition_factor is not None and partition_factor < 1:
        raise PlanError(
            "--partition-factor",
            f"{partition_factor} is not a number of tiles",
            hint="Give 1 or more tiles per axis, or leave it out to let the planner choose.",
        )
    assigned = _assign(network, method, settings, partition_factor, None if hand_over else block_depth)
    if partition_factor is not None and partition_factor > 1:
        _check_factor(network, tuple(block for block, _ in assigned), partition_factor)
    blocks = []
    largest = partition_factor or 1
    for number, (block, first) in enumerate(assigned, start=1):
        choice, weights = first, False
        name = f"block{number}"
        title = f"{name} [{_span(block)}]"
        if choice.torus is None:
            factor, cuts = _cut_block(block, name, choice.method, choice.settings, partition_factor)
            largest = max(largest, factor)
            together = _together(block, choice, factor, cuts) if composition == "metric" else None
            if together is not None:
                choice, cuts = together, ((name, CutTile(output=(), field=(), network=block)),)
            elif composition in WEIGHTED and choice.method in DENSE and any(cut.output for _, cut in cuts):
                weights, cuts = True, _weighted(cuts, block)
            tiles = label_tiles(title, cuts, choice.method, choice.settings)
        else:
            tiles = (_whole(title, block, choice),)
        blocks.append(
            Block(
                label=title,
                network=block,
                tiles=tiles,
                input_shape=block.input_shape,
                output_shape=block.output_shape,
                method=choice.method,
                settings=choice.settings,
                reason=choice.reason,
                torus=choice.torus,
                together=choice.together,
                weighted=weights,
            )
        )
    return Plan(
        blocks=tuple(blocks),
        method=method,
        settings=settings,
        partition_factor=largest,
        block_depth=block_depth,
    )


def _assign(
    network: Network, method: str, settings: Settings, factor: int | None, depth: int | None
) -> tuple[tuple[Network, Choice], ...]:
    """The blocks in order, each with its method."""
    tiled = factor is not None and factor > 1
    if method in TORUS_METHODS and tiled:
        raise PlanError(
            "--partition-factor",
            f"the method {method} does not tile maps: their frequencies are its sub-problems",
            hint="Leave it out, or use --method ellipsoid.",
        )
    if method not in (AUTO, *TORUS_METHODS) or tiled:
        plain = "ellipsoid" if method == AUTO else method
        choice = Choice(plain, settings, "tiles are solved by it" if method == AUTO else "asked for")
        return tuple((block, choice) for block in _blocks(network, plain, settings, factor, depth))
    blocks = (network,) if depth is None else split_depth(network, depth)
    assigned: list[tuple[Network, Choice]] = []
    for block in blocks:
        choice = _choose(network, block, method, settings)
        parts: tuple[Network, ...] = (block,)
        if choice.torus is None and not fits(block, choice.method, settings):
            parts = _blocks(block, choice.method, settings, None, None) if depth is None else _split_map(block, 1)
        assigned.extend((part, choice) for part in parts)
    return tuple(assigned)


def _choose(network: Network, block: Network, method: str, settings: Settings) -> Choice:
    """The choice for one block; among several, one without maps is none of the torus' business."""
    own = switch_in(network, block, settings)
    if block is not network and method in TORUS_METHODS and not torus_cuts(block):
        return Choice("ellipsoid", replace(own, switch=None), "it has no maps")
    return choose(block, method, own)


def _whole(title: str, block: Network, choice: Choice) -> Tile:
    neurons = estimate_cost(block, "product", choice.settings).neurons
    key = block.content_hash()
    return Tile(title, block, key, (), (), neurons, choice.memory, choice.seconds)


def _blocks(
    network: Network, method: str, settings: Settings, factor: int | None, depth: int | None
) -> tuple[Network, ...]:
    """The blocks in order: cut in depth, then a map that is to be tiled cut off from what hides it."""

    def fitting(block: Network) -> bool:
        return fits(block, method, settings)

    if factor is None or factor == 1:
        blocks = split_depth(network, depth, fits=fitting)
        return tuple(part for block in blocks for part in ((block,) if fitting(block) else _split_map(block, 1)))
    if depth is not None:
        return tuple(part for block in split_depth(network, depth) for part in _split_map(block, factor))
    # One block for the maps, tiled as finely as it needs; what follows them is grouped as it fits.
    head, *tail = _split_map(network, factor)
    heads: tuple[Network, ...] = (head,)
    if not _fits_in_tiles(head, max(head.output_shape[1:], default=1), fitting):
        heads = split_depth(head, None, fits=lambda block: _fits_in_tiles(block, factor, fitting))
    return (*heads, *(block for part in tail for block in split_depth(part, None, fits=fitting)))


def _fits_in_tiles(block: Network, factor: int, fitting: Callable[[Network], bool]) -> bool:
    """Whether the block fits whole, or as p tiles per axis."""
    if fitting(block):
        return True
    if not is_tileable(block):
        return False
    return all(fitting(tile) for tile in _distinct(cut_tiles(block, tile_windows(block.output_shape, factor))))


def _split_map(block: Network, factor: int) -> tuple[Network, ...]:
    """Cut a block that cannot be tiled after its last map with p positions on a side, if tiling it gains.

    A dense tail, for one, makes all that precedes it untileable. The block itself where it can be tiled, or
    where the part before the cut would have one linear operator only.
    """
    if is_tileable(block):
        return (block,)
    end = _last_map(block, max(factor, 2))
    if end is None or _single_operator(sub_network(block, 0, end)):
        return (block,)
    return sub_network(block, 0, end), sub_network(block, end, len(block.nodes) - 1)


def _last_map(network: Network, side: int) -> int | None:
    """The last end of an activation up to which the network is tileable, its map at least ``side`` long."""
    found = None
    for end in activation_ends(network):
        prefix = sub_network(network, 0, end)
        if not is_tileable(prefix):
            break
        if max(prefix.output_shape[1:]) >= side:
            found = end
    return found


def _check_factor(network: Network, blocks: tuple[Network, ...], factor: int) -> None:
    """Refuse a factor that no block's map can be cut by."""
    prefixes = (sub_network(network, 0, end) for end in activation_ends(network))
    maps = [block for block in (*blocks, *prefixes) if is_tileable(block)]
    sides = [max(block.output_shape[1:]) for block in maps]
    if not sides:
        raise PlanError(
            "--partition-factor",
            f"{factor} tiles per axis were asked for, but the network has no map of positions to tile",
            hint="Leave it out; only convolutional blocks can be tiled.",
        )
    if factor > max(sides):
        raise PlanError(
            "--partition-factor",
            f"{factor} is larger than the largest map that can be tiled, {max(sides)} positions on its longest side",
            hint=f"Give at most {max(sides)}, or leave it out to let the planner choose.",
        )


def _cut_block(
    block: Network, name: str, method: str, settings: Settings, factor: int | None
) -> tuple[int, tuple[tuple[str, CutTile], ...]]:
    """The factor used and the tiles with their labels; one tile without windows where left whole."""
    whole = ((name, CutTile(output=(), field=(), network=block)),)
    fitting = fits(block, method, settings)
    asked = factor or 1
    if (asked == 1 and fitting) or not is_tileable(block) or _single_operator(block):
        return 1, whole if fitting else ()
    shape = block.output_shape
    if asked == 1:
        searched = _search(block, method, settings)
        if searched is None or _seconds(block, searched, method, settings) > AUTOMATIC_TILING_SECONDS:
            return 1, ()
        asked = searched
    labelled: list[tuple[str, CutTile]] = []
    for number, tile in enumerate(cut_tiles(block, tile_windows(shape, asked)), start=1):
        parts = _refine(block, tile, method, settings)
        if parts is None:
            return 1, ()
        if len(parts) == 1:
            labelled.append((f"{name}/tile{number}", parts[0]))
        else:
            labelled.extend((f"{name}/tile{number}-{i}", part) for i, part in enumerate(parts, start=1))
    return asked, tuple(labelled)


def _together(block: Network, choice: Choice, factor: int, cuts: Sequence[tuple[str, CutTile]]) -> Choice | None:
    """The choice for a tiled block that is solved by its tiles' metrics; ``None`` where they do not fit together."""
    windows = tile_windows(block.output_shape, factor)
    if choice.method != "ellipsoid" or factor < 2 or tuple(cut.output for _, cut in cuts) != windows:
        return None
    settings = replace(choice.settings, tiles=factor)
    cost, work = tiles_together(block, windows, settings)
    if cost.memory_bytes > settings.memory:
        return None
    reason = f"{work.tiles} tiles, {work.groups} distinct, together"
    return replace(choice, method=METRIC, settings=settings, reason=reason, together=work)


def _weighted(cuts: Sequence[tuple[str, CutTile]], block: Network) -> tuple[tuple[str, CutTile], ...]:
    """The same tiles as maps of their weighted inputs."""
    tiles = [cut for _, cut in cuts]
    given = tile_weights([tile.output for tile in tiles], [tile.field for tile in tiles], block.input_shape)
    tiles = list(weighted_tiles(tiles, given))
    return tuple((label, tile) for (label, _), tile in zip(cuts, tiles, strict=True))


def _distinct(tiles: Sequence[CutTile]) -> tuple[Network, ...]:
    """The tiles' networks, each object once: translates share one."""
    return tuple(kind.network for kind in distinct_tiles(tiles))


def _search(block: Network, method: str, settings: Settings) -> int | None:
    """The smallest factor whose tiles all fit, or ``None`` where single positions do not.

    Bisection: larger tiles have larger fields, so that memory falls with the factor.
    """

    def fitting(factor: int) -> bool:
        tiles = cut_tiles(block, tile_windows(block.output_shape, factor))
        return all(fits(tile, method, settings) for tile in _distinct(tiles))

    low, high = 1, max(block.output_shape[1:])
    if not fitting(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        if fitting(middle):
            high = middle
        else:
            low = middle
    return high


def _seconds(block: Network, factor: int, method: str, settings: Settings) -> float:
    """Estimated seconds of the distinct tiles of a block."""
    tiles = _distinct(cut_tiles(block, tile_windows(block.output_shape, factor)))
    return sum(estimate_cost(tile, method, settings).seconds for tile in tiles)


def _refine(block: Network, tile: CutTile, method: str, settings: Settings) -> tuple[CutTile, ...] | None:
    """The tile if it fits, else the fewest equal parts of it that do; ``None`` where single positions do not."""
    if fits(tile.network, method, settings):
        return (tile,)
    longest = max(stop - start for start, stop in tile.output)
    shape = (block.output_shape[0], *(stop - start for start, stop in tile.output))
    for factor in range(2, longest + 1):
        windows = tuple(
            tuple((origin + low, origin + high) for (origin, _), (low, high) in zip(tile.output, window, strict=True))
            for window in tile_windows(shape, factor)
        )
        parts = cut_tiles(block, windows)
        if all(fits(part, method, settings) for part in _distinct(parts)):
            return parts
    return None


def label_tiles(title: str, cuts: tuple[tuple[str, CutTile], ...], method: str, settings: Settings) -> tuple[Tile, ...]:
    """Tiles with their content hashes and costs, both computed once per distinct structure.

    Args:
        title: the label of a block that is not tiled.
        cuts: labels and tiles.
        method: by which they are to be solved.
        settings: and with which settings.
    """
    known: dict[object, tuple[Network, str, int, int, float]] = {}
    tiles = []
    for label, cut in cuts:
        # Array keys name the same arrays throughout a block, so equal nodes are equal contents.
        structure = tuple((node.op, node.inputs, node.shape) for node in cut.network.nodes)
        if structure not in known:
            cost = estimate_cost(cut.network, method, settings)
            known[structure] = (cut.network, cut.network.content_hash(), cost.neurons, cost.memory_bytes, cost.seconds)
        shared, key, neurons, memory, seconds = known[structure]
        tiles.append(
            Tile(
                label=label if cut.output else title,
                network=shared,
                key=key,
                output=cut.output,
                field=cut.field,
                neurons=neurons,
                memory=memory,
                seconds=seconds,
            )
        )
    return tuple(tiles)


def _single_operator(block: Network) -> bool:
    """Whether at most one node does more than act on each entry alone."""
    return sum(isinstance(node.op, _OPERATORS) for node in block.nodes) <= 1


def _span(block: Network) -> str:
    """Names of the first and last layer of a block."""
    first = block.nodes[min(1, len(block.nodes) - 1)].name
    last = block.nodes[-1].name
    return first if first == last else f"{first}..{last}"
