"""What the certificates say: the solver's own value, the verified bound, the excess of rounding, the verifier's time.

    .venv/bin/python benchmarks/verification.py [--only "resnet18 224"] [--repeat 1] [--short]

Every certificate is written to bytes, read back, and verified in this process against the network. The published
networks are read from ``../shared/networks`` beside the project, or from the folder LIPRAY_NETWORKS names.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import harness
from harness import ROOT, Column, Row

from lipray.certify.excess import unrounded_dense, unrounded_torus
from lipray.config import EstimateConfig
from lipray.model.load import load_network
from lipray.model.network import Network
from lipray.run.driver import RunOutcome, estimate_network
from lipray.run.serial import SerialExecutor
from lipray.run.session import certificate_files
from lipray.verify.check import unfold, verify
from lipray.verify.elimination import prepare
from lipray.verify.prove import Problem
from lipray.verify.record import decode, expected_arrays, unpack
from lipray.verify.sector import lower
from lipray.verify.torus.proof import Means, set_up

sys.path.append(str(ROOT))
from tests import published as reader  # the reader of the tests, which are no package of lipray

EXAMPLES = ROOT / "examples"
SMALL, DENSE, LARGE = 1e-9, 1e-7, 1e-6
"""Excess of rounding that is allowed, relatively: on the small networks, where one dense matrix has a thousand
rows or more (the a-priori bound of Cholesky grows with the square of its order), and on ResNets."""


@dataclass(frozen=True)
class Case:
    """A network, how it is bounded, and the excess that is allowed."""

    load: Callable[[], Network]
    method: str = "auto"
    iterations: int | None = None
    allowed: float = SMALL
    published: str = ""


def example(model: str, shape: tuple[int, ...], weights: str | None = None) -> Callable[[], Network]:
    """One of the networks that come with lipray."""
    path = None if weights is None else EXAMPLES / weights
    return lambda: load_network(model, shape, weights=path).network


def published(name: str, method: str = "auto", allowed: float = SMALL) -> Case:
    """One of the published networks, the output row that is bounded there."""

    def load() -> Network:
        return reader.published(name, reader.catalogue()[name].get("output_row"))

    return Case(load, method, allowed=allowed, published=name)


DIGITS = "examples/digits_cnn.py:digits_cnn"
CASES = {
    "digits_cnn ellipsoid": Case(example(str(ROOT / DIGITS), (1, 8, 8), "digits_cnn.safetensors")),
    "digits_cnn frequency": Case(example(str(ROOT / DIGITS), (1, 8, 8), "digits_cnn.safetensors"), "frequency"),
    "digits_cnn hybrid": Case(example(str(ROOT / DIGITS), (1, 8, 8), "digits_cnn.safetensors"), "hybrid"),
    "fnn2_s0": published("fnn2_s0"),
    "fnn2_s0 sdp": published("fnn2_s0", "sdp"),
    "lipsdp_random": published("lipsdp_random"),
    "mlp_L9_W16": published("mlp_L9_W16"),
    "tiny_2cf065c3": published("tiny_2cf065c3"),
    "cnn2_s0": published("cnn2_s0"),
    "FC-R18": published("FC-R18", allowed=DENSE),
    "chain_C5_CH8 frequency": published("chain_C5_CH8", "frequency"),
    "chain_C9_CH8 frequency": published("chain_C9_CH8", "frequency"),
    "chain_C5_CH8 hybrid": published("chain_C5_CH8", "hybrid", DENSE),
    "2C2F_wd": published("2C2F_wd", allowed=DENSE),
    "resnet18 32 trained": Case(
        example("resnet18-cifar", (3, 32, 32), "resnet18_digits32.safetensors"), "frequency", 0, LARGE
    ),
    "resnet18 32": Case(example("resnet18-cifar", (3, 32, 32)), "frequency", 0, LARGE),
    "resnet18 224": Case(example("resnet18", (3, 224, 224)), "frequency", 0, LARGE),
}
SHORT = ("digits_cnn frequency", "digits_cnn hybrid", "fnn2_s0", "tiny_2cf065c3")

COLUMNS = (
    Column("network", "network"),
    Column("method", "method"),
    Column("solver's own", "solver", harness.number),
    Column("verified", "verified", harness.upper),
    Column("excess of rounding", "excess", harness.relative),
    Column("allowed", "allowed", harness.relative),
    Column("estimate, s", "estimate_seconds", harness.seconds),
    Column("verify, s", "seconds", harness.seconds),
    Column("certificate, KiB", "size", lambda value: f"{value / 1024:,.0f}"),
    Column("verdict", "verdict"),
)

NOTES = """\
`solver's own`: the value that the optimiser believed where it stopped (nothing where the closed form was asked for).
`excess of rounding`: verified / what the same multipliers give without what covers rounding, minus 1; the largest over
the sub-problems. `estimate`: product bounds, optimiser and proofs, no lower bound. `verify`: from the bytes of the
certificate to the verdict, one process.

pass: the verified bound is the printed one, and the excess is at most what is allowed.
"""


def measure(name: str, case: Case) -> Row:
    """One row."""
    network = case.load()
    config = EstimateConfig(
        method=case.method, iterations=case.iterations, lower_starts=0, executor="serial", threads=None
    )
    start = time.perf_counter()
    outcome = estimate_network(network, config, SerialExecutor())
    estimated = time.perf_counter() - start
    files = certificate_files(network, config, outcome)
    if files is None:
        raise RuntimeError("the bound is infinite")
    start = time.perf_counter()
    record = decode("certificate.json", files[0])
    arrays = unpack("certificate.npz", files[1], expected_arrays(record))
    verdict = verify(record, arrays, network)
    seconds = time.perf_counter() - start
    problems = unfold(record, arrays, network).problems
    pairs = zip(problems, verdict.problems, strict=True)
    excess = max(bound / plain - 1.0 for problem, bound in pairs if (plain := unrounded(problem)) is not None)
    missed = []
    if verdict.bound != outcome.bound.upper:
        missed.append(f"the printed bound is {outcome.bound.upper!r}")
    if not excess <= case.allowed:
        missed.append("more excess than allowed")
    return {
        "network": name,
        "method": outcome.bound.method,
        "solver": solver_value(outcome),
        "verified": verdict.bound,
        "excess": excess,
        "allowed": case.allowed,
        "estimate_seconds": estimated,
        "seconds": seconds,
        "size": len(files[0]) + len(files[1]),
        "verdict": "FAIL: " + ", ".join(missed) if missed else "pass",
    }


def solver_value(outcome: RunOutcome) -> float | None:
    """What the optimiser believed, for a network that is one sub-problem."""
    values = [certificate.figures.get("solver") for certificate in outcome.bound.certificate.values()]
    found = [value for value in values if value is not None]
    return found[0] if len(found) == 1 else None


def unrounded(problem: Problem) -> float | None:
    """The value of a sub-problem's multipliers without what covers rounding; ``None`` for a product."""
    proof = problem.proof
    if proof.kind == "dense":
        return unrounded_dense(prepare(lower(problem.network)), proof.multipliers)
    if proof.kind == "torus":
        setup = set_up(problem.network, proof.cut, window=proof.window)
        return unrounded_torus(setup, proof.multipliers, Means())
    return None


def main() -> int:
    """Run the benchmark; the exit code says whether a row failed."""
    options = harness.arguments("Certificates: rounding and the verifier's time.").parse_args()
    results = harness.Results("verification", "Certificates verified", COLUMNS, options, NOTES)
    for name, case in CASES.items():
        if options.short and name not in SHORT:
            continue
        if case.published and not (reader.FOLDER / f"{case.published}.safetensors").is_file():
            results.skip(name, "the published networks are not here (see LIPRAY_NETWORKS)")
            continue
        results.row(name, lambda name=name, case=case: measure(name, case))
    return results.close(tuple(CASES))


if __name__ == "__main__":
    sys.exit(main())
