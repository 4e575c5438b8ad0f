"""Certified Lipschitz constants of convolutional networks, from a laptop to a Ray cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from lipray.api import certify_radii as certify_radii
    from lipray.api import estimate as estimate
    from lipray.api import plan as plan
    from lipray.api import verify_run as verify_run
    from lipray.compose.bound import BlockBound as BlockBound
    from lipray.compose.bound import Bound as Bound
    from lipray.errors import LiprayError as LiprayError
    from lipray.model.importer import import_module as import_module
    from lipray.model.network import Network as Network
    from lipray.partition.plan import Plan as Plan

_HOMES = {
    "certify_radii": "lipray.api",
    "estimate": "lipray.api",
    "plan": "lipray.api",
    "verify_run": "lipray.api",
    "Bound": "lipray.compose.bound",
    "BlockBound": "lipray.compose.bound",
    "LiprayError": "lipray.errors",
    "import_module": "lipray.model.importer",
    "Network": "lipray.model.network",
    "Plan": "lipray.partition.plan",
}

__all__ = [
    "BlockBound",
    "Bound",
    "LiprayError",
    "Network",
    "Plan",
    "__version__",
    "certify_radii",
    "estimate",
    "import_module",
    "plan",
    "verify_run",
]


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: ``import lipray`` alone costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'lipray' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
