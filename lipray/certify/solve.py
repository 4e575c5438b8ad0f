"""One sub-problem in, one certificate out: the method by its name."""

from __future__ import annotations

from dataclasses import replace

from lipray.certify.certificate import Certificate, Status
from lipray.errors import SolveError, UsageError
from lipray.partition.subproblem import METHODS, Subproblem


def solve(problem: Subproblem) -> Certificate:
    """Certify a sub-problem by its method.

    Returns:
        A certificate whose ``bound`` is at least the l2 Lipschitz constant of ``problem.network``. If the method
        itself proves nothing, the product bound stands in, with status ``FALLBACK``. It is infinite where no
        finite bound exists in floating point (weights or bounds beyond 1e300).

    Raises:
        UsageError: an unknown method.
        SolveError: the bound is not a number, which is a defect.
    """
    from lipray.certify.ellipsoid import solve_ellipsoid
    from lipray.certify.product import solve_product

    certificate: Certificate | None
    match problem.method:
        case "product":
            certificate = solve_product(problem)
        case "ellipsoid":
            certificate = solve_ellipsoid(problem)
        case "frequency" | "hybrid":
            from lipray.certify.frequency.solve import solve_frequency

            certificate = solve_frequency(problem)
        case "metric":
            from lipray.certify.metric_solve import solve_metric

            certificate = solve_metric(problem)
        case "sdp":
            from lipray.certify.sdp import solve_sdp

            certificate = solve_sdp(problem)
        case _:
            raise UsageError("--method", f"{problem.method!r} is not one of {', '.join(METHODS)}")
    return checked(problem, certificate)


def checked(problem: Subproblem, certificate: Certificate | None) -> Certificate:
    """What a method returned, with the product bound in the place of nothing.

    Raises:
        SolveError: the bound is not a number, which is a defect.
    """
    if certificate is None:
        from lipray.certify.product import solve_product

        certificate = replace(solve_product(problem), method=problem.method, status=Status.FALLBACK)
    if not certificate.bound >= 0.0:
        raise SolveError(problem.label, f"the bound {certificate.bound} is not a number")
    return certificate
