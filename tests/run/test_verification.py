"""Verification over an executor: the same figures as in place, and what becomes of work that is lost."""

import pytest

from lipray.config import EstimateConfig
from lipray.errors import ClusterError, InfeasibleResourcesError, VerificationError
from lipray.run import verification
from lipray.run.driver import estimate_network
from lipray.run.executor import Failure
from lipray.run.serial import SerialExecutor
from lipray.run.session import certificate_files
from lipray.run.verification import select, verify_certificate
from lipray.verify.record import SelectionPart, decode, expected_arrays, unpack
from tests.maps import Maps

MEMORY = 2**30


def network():
    maps = Maps(1, 10, 10, seed=3)
    maps.conv(3, padding=1)
    maps.act()
    maps.conv(3, padding=1, stride=2)
    maps.act()
    maps.flatten()
    maps.dense(4)
    return maps.network()


NETWORK = network()


def certified(**options):
    """An estimate's printed bound, its certificate and the multipliers."""
    config = EstimateConfig(lower_starts=0, executor="serial", iterations=0, **options)
    outcome = estimate_network(NETWORK, config, SerialExecutor(1))
    first, second = certificate_files(NETWORK, config, outcome)
    record = decode("certificate.json", first)
    return outcome.bound.upper, record, unpack("certificate.npz", second, expected_arrays(record))


@pytest.fixture(params=["together", "in rounds"])
def way(request, monkeypatch):
    """Proofs on tori as one task each, or their bundles as tasks."""
    monkeypatch.setattr(verification, "LONG_ROUND", 0.0 if request.param == "in rounds" else 1e9)


class Losing(SerialExecutor):
    """Gives every task up."""

    released = 0

    def run(self, tasks, *, keep=False, deadline=None):
        del keep, deadline
        yield from (Failure(task, "WorkerCrashedError", "the worker died", 3) for task in tasks)

    def listen(self, notify):
        pass

    def release(self):
        self.released += 1


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("options", [{"method": "frequency"}, {"method": "hybrid"}, {"block_depth": 1}])
def test_the_figures_are_those_of_the_estimate(options):
    printed, record, arrays = certified(**options)
    told = []
    verdict = verify_certificate(
        record, arrays, NETWORK, SerialExecutor(1), memory=MEMORY, notify=lambda *news: told.append(news)
    )
    assert verdict.bound == pytest.approx(printed, rel=1e-12)
    assert verdict.claim == printed
    assert [done for done, _, _ in told] == list(range(1, len(record.problems) + 1))
    assert [block.claim for block in verdict.blocks] == [block.claim for block in record.blocks]


@pytest.mark.usefixtures("way")
def test_what_fails_is_named():
    _, record, arrays = certified(method="frequency")
    arrays["0-1"][2] = -1.0
    with pytest.raises(VerificationError, match=r"sub-problem 0 .*number 2 is -1.0"):
        verify_certificate(record, arrays, NETWORK, SerialExecutor(1), memory=MEMORY)
    _, record, arrays = certified(method="frequency")
    with pytest.raises(VerificationError, match="not feasible"):
        verify_certificate(
            record, {key: 1e6 * values for key, values in arrays.items()}, NETWORK, SerialExecutor(1), memory=MEMORY
        )


@pytest.mark.usefixtures("way")
def test_lost_work_says_nothing_of_the_certificate():
    _, record, arrays = certified(method="frequency")
    place = Losing(1)
    with pytest.raises(ClusterError, match=r"could not be checked .*the worker died"):
        verify_certificate(record, arrays, NETWORK, place, memory=MEMORY)


def test_kept_arrays_are_released(monkeypatch):
    monkeypatch.setattr(verification, "LONG_ROUND", 0.0)
    _, record, arrays = certified(method="frequency")
    place = Losing(1)
    with pytest.raises(ClusterError):
        verify_certificate(record, arrays, NETWORK, place, memory=MEMORY)
    assert place.released == 1


def test_what_fits_no_machine_is_refused(monkeypatch):
    _, record, arrays = certified(method="ellipsoid")
    monkeypatch.setattr("lipray.run.serial.machine_memory", lambda: 1)
    with pytest.raises(InfeasibleResourcesError):
        verify_certificate(record, arrays, NETWORK, SerialExecutor(1), memory=MEMORY)


def test_outputs_that_the_model_lacks_are_named():
    assert select(NETWORK, SelectionPart()) is NETWORK
    assert select(NETWORK, SelectionPart(rows=(1, 3))).output_shape == (2,)
    assert select(NETWORK, SelectionPart(pairs=((0, 1),))).output_shape == (1,)
    with pytest.raises(VerificationError, match=r"the model: .*outputs that it does not have"):
        select(NETWORK, SelectionPart(rows=(7,)))
