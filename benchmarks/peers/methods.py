"""The ways that are measured, in the order of the table: name, whose version counts, and what is called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import metadata

from lipray.model.network import Network
from peers import naive
from peers.answer import Answer

Call = Callable[[Network, float], Answer]
LIMIT = 30.0
"""Seconds a row may take, times its method's patience."""
PEER, LAYERS, WHOLE, TORUS = 6.0, 30.0, 3.0, 2.0
"""How many times a run's limit a row may take: solvers, ECLipsE, and lipray on whole networks and on tori. Bounds by
tiles take it once."""


@dataclass(frozen=True, slots=True)
class Method:
    """A way of bounding a network; ``packages`` are those whose version is part of a row's name."""

    name: str
    packages: tuple[str, ...]
    call: Call
    maps: bool = False
    """Whether it is only for networks with convolutions."""
    patience: float = 1.0
    """Factor on the run's limit."""
    slow: bool = False
    """Whether it is left out of networks that are another's with other weights."""


def _methods() -> tuple[Method, ...]:
    from peers import absent, eclipse, lipsdp, own

    def one(name: str, packages: tuple[str, ...], call: Callable[[Network], Answer]) -> Method:
        return Method(name, packages, lambda network, _: call(network))

    solvers = {"Clarabel": "clarabel", "SCS": "scs", "SCS, tight": "scs", "SDPA": "sdpa-python"}
    return (
        Method("attained", ("lipray",), own.lower_bound),
        one("Frobenius product", ("torch",), partial(naive.product, norm=naive.frobenius)),
        one("SVD product", ("torch",), partial(naive.product, norm=naive.spectral)),
        one("LipLT", ("numpy",), naive.liplt),
        one("ECLipsE-Fast", ("numpy",), eclipse.eclipse_fast),
        Method("ECLipsE", ("cvxpy", "sdpa-python"), eclipse.eclipse, patience=LAYERS),
        *(
            Method(
                f"LipSDP, {way}",
                ("cvxpy", package),
                partial(lipsdp.lipsdp, way),
                patience=PEER,
                slow=way != "SDPA",
            )
            for way, package in solvers.items()
        ),
        one("lipray, product", ("lipray",), own.product),
        one("lipray, closed form", ("lipray",), own.closed_form),
        Method("lipray, ellipsoid", ("lipray",), partial(own.estimate, method="ellipsoid"), patience=WHOLE),
        Method(
            "lipray, ellipsoid to 1 %",
            ("lipray",),
            partial(own.estimate, method="ellipsoid", tolerance=0.01),
            patience=WHOLE,
        ),
        *(Method(f"lipray, {name}", ("lipray",), partial(own.on_tori, method=name), True, TORUS) for name in own.TORI),
        Method("lipray, auto", ("lipray",), partial(own.estimate, method="auto"), patience=WHOLE),
        *(
            Method(name, ("lipray",), partial(own.tiled, composition=how, factor=factor), True)
            for name, (how, factor) in own.ways().items()
        ),
        one("auto_LiRPA, Jacobian", ("auto_LiRPA",), absent.jacobian),
    )


METHODS = {method.name: method for method in _methods()}
LOWER = "attained"
"""The row that others are held against."""


def version(method: Method) -> str:
    """Names and versions of what a row was measured with; a package that is not here has none."""
    parts = []
    for package in method.packages:
        try:
            parts.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            parts.append(f"{package} absent")
    return ", ".join(parts)
