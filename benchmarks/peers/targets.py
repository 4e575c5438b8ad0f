"""What is asked of the comparison, and what was seen; misses are listed with their reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from harness import Row

from peers.derive import SOLVERS, lipsdp_of, valid
from peers.methods import LOWER

Rows = Mapping[str, Mapping[str, Row]]
CLOSE = 1.001
"""How far above the best LipSDP value known a bound may be."""
NEAR = 1.01
"""How near to a solver's value a bound must be to count as that answer."""
TIMES = 50.0
LARGE = 300
"""Neurons from which on lipray is to be that many times faster than Clarabel and SCS."""
TIMED = ("LipSDP, Clarabel", "LipSDP, SCS", "LipSDP, SCS, tight")
DEEP = ("fc_L100_W100", "fc_L100_W160")


@dataclass(frozen=True, slots=True)
class Target:
    """One thing asked: ``seen`` is what the rows say, ``misses`` where they say otherwise and why; ``each`` all."""

    asked: str
    seen: str
    misses: tuple[str, ...]
    each: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """In a word."""
        if not self.seen:
            return "not measured"
        return "missed" if self.misses else "met"


def targets(rows: Rows, neurons: Mapping[str, int]) -> tuple[Target, ...]:
    """All of them, from the rows of every network and its number of neurons."""
    return (tight(rows), faster(rows, neurons), deep(rows), bracketed(rows))


def ours(rows: Mapping[str, Row]) -> dict[str, Row]:
    """Rows of lipray that have a bound."""
    return {name: row for name, row in rows.items() if name.startswith("lipray, ") and row.get("bound") is not None}


def tight(rows: Rows) -> Target:
    """Within a thousandth of LipSDP's value wherever one is known."""
    misses, worst, count = [], 0.0, 0
    for network, own in rows.items():
        known, found = lipsdp_of(own), ours(own)
        if known is None or not found:
            continue
        count += 1
        name = min(found, key=lambda name, found=found: found[name]["bound"])
        excess = found[name]["bound"] / known - 1.0
        worst = max(worst, excess)
        if excess > CLOSE - 1.0:
            why = found[name].get("ended", "")
            misses.append(f"{network}: {excess:+.2%} ({name}, ended {why})")
    seen = f"{count - len(misses)} of {count} networks; at most {worst:+.1e}" if count else ""
    return Target("within 0.1 % of the best LipSDP value known, on every network with one", seen, tuple(misses))


def faster(rows: Rows, neurons: Mapping[str, int]) -> Target:
    """Fifty times as fast as the solvers on networks of 300 neurons and more."""
    misses, each, ratios = [], [], []
    for network, own in rows.items():
        if neurons.get(network, 0) < LARGE:
            continue
        for name in TIMED:
            row = own.get(name)
            if row is None or row.get("left_out"):
                continue
            value = lipsdp_of(own) or min((item["bound"] for item in ours(own).values()), default=None)
            near = {key: item for key, item in ours(own).items() if value and item["bound"] <= NEAR * value}
            if not near:
                misses.append(f"{network}, {name}: no bound of lipray's within 1 % of LipSDP")
                each.append(misses[-1])
                continue
            if str(row.get("ended")).startswith(("died", "out of memory")):
                each.append(f"{network}, {name}: {row['ended']} in {row['seconds']:.3g} s, with nothing to compare")
                continue
            quickest = min(near, key=lambda key, near=near, row=row: _times(row, near[key])[1])
            slow, quick = _times(row, near[quickest])
            ratio = slow / quick
            ratios.append(ratio)
            finished = row.get("ended") == "optimal"
            said = f"{network}, {name}: {'' if finished else 'at least '}{ratio:.3g} times ({slow:.3g} s"
            said += f"{'' if finished else ', ended ' + str(row.get('ended'))}; {quickest}, {quick:.3g} s)"
            each.append(said)
            if ratio < TIMES:
                misses.append(f"{said}: {_why(slow, quick, finished=finished)}")
    seen = ""
    if ratios:
        good = sum(ratio >= TIMES for ratio in ratios)
        ordered = sorted(ratios)
        middle = ordered[len(ordered) // 2]
        seen = f"{good} of {len(ratios)} pairs; {ordered[0]:.3g} to {ordered[-1]:.3g} times, in the middle {middle:.3g}"
    asked = f"{TIMES:.0f} times faster than Clarabel and SCS to within 1 % of LipSDP, from {LARGE} neurons on"
    return Target(asked, seen, tuple(misses), tuple(each))


def _why(slow: float, quick: float, *, finished: bool) -> str:
    """Why a quotient of times falls short."""
    if not finished:
        return f"the solver was given no more time, {TIMES * quick:.3g} s would have been needed to tell"
    if slow < TIMES:
        return f"the solver takes {slow:.3g} s itself, where lipray's own start and proofs count"
    return "lipray's optimiser takes that many steps"


def _times(one: Row, other: Row) -> tuple[float, float]:
    """What two rows took: CPU seconds where both have them, which other work on the machine does not lengthen."""
    key = "cpu" if one.get("cpu") and other.get("cpu") else "seconds"
    return one[key], other[key]


def deep(rows: Rows) -> Target:
    """Tighter than ECLipsE on networks of a hundred layers, in less time than its programs."""
    misses, said = [], []
    for network in DEEP:
        own = rows.get(network, {})
        peer, found = own.get("ECLipsE"), ours(own)
        if peer is None or not found:
            continue
        bound = valid(peer)
        if bound is None:
            quick = [row for row in found.values() if _times(row, peer)[0] < _times(row, peer)[1]]
            end = f"ECLipsE no bound, {peer.get('ended')} after {peer['seconds']:.0f} s"
            if quick:
                best = min(quick, key=lambda row: row["bound"])
                said.append(f"{network}: {best['bound']:.3g} in {best['seconds']:.1f} s, {end}")
            else:
                misses.append(f"{network}: {end}")
            continue
        sooner = {name: _times(row, peer) for name, row in found.items() if row["bound"] < bound}
        below = [name for name, (own_time, its_time) in sooner.items() if own_time < its_time]
        best = min(found.values(), key=lambda row: row["bound"])
        took, its = _times(best, peer)
        said.append(f"{network}: {best['bound']:.3g} in {took:.1f} s, ECLipsE {bound:.3g} in {its:.1f} s")
        if not below:
            solved = any(name.startswith(("lipray, ellipsoid", "lipray, auto")) for name in found)
            later = "" if solved else ": lipray's optimisers are not measured yet"
            misses.append(f"{network}: no bound that is both smaller and sooner{later}")
    asked = "on networks of 100 layers of width 100 tighter than ECLipsE, in less time than its programs"
    return Target(asked, "; ".join(said) or "; ".join(misses), tuple(misses))


def bracketed(rows: Rows) -> Target:
    """A valid bound and its gap factor in every row that was tried."""
    reasons: Counter[str] = Counter()
    total, low = 0, []
    for network, own in rows.items():
        attained = own.get(LOWER, {}).get("bound")
        for name, row in own.items():
            if name == LOWER or row.get("left_out"):
                continue
            total += 1
            bound = valid(row)
            if row.get("other_network"):
                reasons["a published figure of another network"] += 1
            elif bound is None:
                reasons[f"{name}: {row.get('ended') or 'no bound'}"] += 1
            elif LOWER not in own:
                reasons[f"{network}: what is attained is not measured yet"] += 1
            elif not attained:
                reasons[f"{network}: no pair of points attains more than rounding"] += 1
            elif bound < attained * (1.0 - 1e-9):
                low.append(f"{network}, {name}: {bound:.7g} is below what is attained, {attained:.7g}")
    misses = [
        *low,
        *(f"{reason} ({count} {'row' if count == 1 else 'rows'})" for reason, count in reasons.most_common()),
    ]
    seen = f"{total - sum(reasons.values()) - len(low)} of {total} rows" if total else ""
    return Target("a valid bound with its gap factor in every row", seen, tuple(misses))


def unproven(rows: Rows) -> list[str]:
    """Solvers' values below what the verifier proves from their multipliers by more than a thousandth."""
    found = []
    for network, own in rows.items():
        for name, row in own.items():
            if name.startswith(SOLVERS) and row.get("proven"):
                excess = row["proven"] / row["bound"] - 1.0
                if excess > CLOSE - 1.0:
                    found.append(f"{network}, {name}: {row['bound']:.7g}, of which {row['proven']:.7g} is proven")
    return found
