"""What tests of several stages share: one thread per library, and the published networks where they are."""

import os
import sys

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.pop("COLUMNS", None)  # tables are as wide as without a terminal

from pathlib import Path  # noqa: E402 - the variables above must be set before numpy is loaded

import pytest  # noqa: E402

from tests import published as networks_beside  # noqa: E402


@pytest.fixture(scope="session")
def networks_folder() -> Path:
    """The folder of published networks; tests that need it are skipped where it is absent."""
    if not networks_beside.here():
        pytest.skip("the published networks are not here; set LIPRAY_NETWORKS")
    return networks_beside.FOLDER


@pytest.fixture(scope="session")
def anchors(networks_folder):
    """Known values: ``anchors(network, part of the method's name)`` gives the first that matches."""
    del networks_folder  # asked for because it skips
    return networks_beside.anchor


@pytest.fixture(scope="session")
def published(networks_folder):
    """``published(name, row)``: one of the published networks, all outputs or a single row of the last layer."""
    del networks_folder  # asked for because it skips
    return networks_beside.published


@pytest.fixture(scope="session")
def ray_library():
    """Ray for tests that start none: imported as lipray imports it, or the embedded Ray of later tests would listen on
    every address."""
    from lipray.run.ray.cluster import _early_options, _restore, _set

    before = _set(_early_options())
    import ray

    _restore(before)
    return ray


RAY_IMPORTED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item):
    """The test that imports Ray otherwise is the one that fails."""
    result = yield
    constants = sys.modules.get("ray._private.ray_constants")
    if constants is not None and not item.config.stash.get(RAY_IMPORTED, False):
        item.config.stash[RAY_IMPORTED] = True
        assert not constants.ENABLE_RAY_CLUSTER, f"{item.nodeid} imports Ray before lipray has prepared it"
    return result
