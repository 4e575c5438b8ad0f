"""What tests of several stages share: one thread per library, and the published networks where they are."""

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

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
