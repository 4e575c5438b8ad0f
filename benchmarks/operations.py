"""Real operations that the matrix kernels of a computation execute, counted from the shapes they are called with."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

TIMES = {True: 8.0, False: 2.0}
"""Real operations of a multiply-add: of complex numbers (four products, four sums), and of real ones."""


class Counter(TorchDispatchMode):
    """Counts products, triangular solves and Cholesky factorisations while it is entered, and nothing else.

    An m x k x n product has m k n multiply-adds, a solve with an n x n triangle and m right-hand sides m n² / 2, a
    Cholesky factorisation n³ / 6. Work entry by entry is left out: it is what keeps a computation from the peak.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: dict[str, float] = {}

    @property
    def total(self) -> float:
        """All of them."""
        return sum(self.operations.values())

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Count, and do."""
        del types
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "_schema").name  # noqa: B009 (an attribute that torch keeps for itself)
        self._count(name.removeprefix("aten::"), args, result)
        return result

    def _count(self, name: str, args: tuple[Any, ...], result: Any) -> None:
        adds = 0.0
        if name in {"mm", "bmm"}:
            adds = float(result.numel()) * args[0].shape[-1]
        elif name in {"addmm", "baddbmm"}:
            adds = float(result.numel()) * args[1].shape[-1]
        elif name == "linalg_solve_triangular":
            adds = float(result.numel()) * args[0].shape[-1] / 2.0
        elif name == "linalg_cholesky_ex":
            result = result[0]
            adds = float(result.numel()) * result.shape[-1] / 6.0
        if adds:
            kind = {"linalg_solve_triangular": "solve", "linalg_cholesky_ex": "Cholesky"}.get(name, "product")
            self.operations[kind] = self.operations.get(kind, 0.0) + adds * TIMES[result.is_complex()]


def counted(work: Callable[[], object]) -> Counter:
    """Do the work once, and count."""
    with Counter() as counter:
        work()
    return counter


def matrix_peak(sizes: tuple[int, ...] = (256, 512, 1024, 1536), runs: int = 5) -> float:
    """Real operations per second of the best of some complex128 products, with torch's threads as they are."""
    generator = torch.Generator().manual_seed(0)
    best = 0.0
    for size in sizes:
        a, b = (torch.randn(size, size, dtype=torch.complex128, generator=generator) for _ in range(2))
        for _ in range(runs):
            start = time.perf_counter()
            torch.mm(a, b)
            best = max(best, TIMES[True] * size**3 / (time.perf_counter() - start))
    return best
