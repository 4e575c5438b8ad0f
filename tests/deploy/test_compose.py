"""The compose file: the published schema, and what a cluster of lipray needs."""

import subprocess
import sys

import pytest

from tests.deploy.files import DOCKER, ENVIRONMENT, IMAGE, ROOT, document, option_values

FILE = DOCKER / "compose.yaml"
COMPOSE = document(FILE)
HEAD, WORKER = COMPOSE["services"]["head"], COMPOSE["services"]["worker"]
OVERHEAD = 2**30
"""Bytes of a worker's limit that are left to Ray's own processes."""


def test_it_follows_the_published_schema():
    pytest.importorskip("check_jsonschema")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(FILE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_schema_sees_a_misspelt_key(tmp_path):
    pytest.importorskip("check_jsonschema")
    wrong = tmp_path / "compose.yaml"
    wrong.write_text(FILE.read_text().replace("mem_limit: 8g", "memory_limit: 8g"))
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(wrong)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 1


def test_a_head_and_two_workers_of_one_image():
    assert COMPOSE["services"].keys() == {"head", "worker"}
    assert WORKER["deploy"]["replicas"] == 2
    assert HEAD["image"] == WORKER["image"] == IMAGE
    build = HEAD["build"]
    assert (FILE.parent / build["context"]).resolve() == ROOT
    assert (FILE.parent / build["context"] / build["dockerfile"]).resolve() == DOCKER / "Dockerfile"
    assert WORKER["depends_on"] == {"head": {"condition": "service_healthy"}}


@pytest.mark.parametrize("service", [HEAD, WORKER], ids=("head", "worker"))
def test_no_service_has_privileges(service):
    assert service["user"] == "10001:10001"
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service.keys() & {"privileged", "cap_add", "network_mode", "pid", "ipc", "devices"}
    assert all(volume.startswith("store:") for volume in service.get("volumes", []))


@pytest.mark.parametrize("service", [HEAD, WORKER], ids=("head", "worker"))
def test_the_token_is_a_secret_from_the_environment(service):
    """A secret from a file would be mounted with the file's owner, which the user in the container is not."""
    (secret,) = service["secrets"]
    assert (secret["uid"], secret["gid"]) == tuple(service["user"].split(":"))
    assert oct(secret["mode"]) == "0o400"
    assert COMPOSE["secrets"] == {secret["source"]: {"environment": "RAY_AUTH_TOKEN"}}
    assert service["environment"]["RAY_AUTH_MODE"] == "token"
    assert service["environment"]["RAY_AUTH_TOKEN_PATH"] == f"/run/secrets/{secret['source']}"
    assert "RAY_AUTH_TOKEN" not in service["environment"]


@pytest.mark.parametrize("service", [HEAD, WORKER], ids=("head", "worker"))
def test_ray_is_started_with_what_lipray_needs(service):
    assert service["environment"].items() >= ENVIRONMENT.items()
    assert service["command"][:2] == ["ray", "start"]
    assert "--block" in service["command"]
    assert service["stop_grace_period"] == "60s"


def test_the_dashboard_is_published_on_loopback_and_the_cluster_has_a_network_of_its_own():
    assert HEAD["ports"] == ["127.0.0.1:8265:8265"]
    assert "ports" not in WORKER
    assert WORKER["networks"] == ["cluster"]
    assert COMPOSE["networks"]["cluster"]["internal"] is True
    assert HEAD["networks"].keys() == {"cluster", "outside"}


def test_the_head_is_found_at_its_address():
    """With two networks Ray would choose the address of the other one."""
    address = HEAD["networks"]["cluster"]["ipv4_address"]
    (config,) = COMPOSE["networks"]["cluster"]["ipam"]["config"]
    assert config["subnet"].rsplit(".", 1)[0] == address.rsplit(".", 1)[0]
    head, worker = option_values(HEAD["command"]), option_values(WORKER["command"])
    assert head["node-ip-address"] == address
    assert worker["address"] == HEAD["environment"]["RAY_ADDRESS"] == f"{address}:{head['port']}"
    assert HEAD["healthcheck"]["test"][-1] == f"{address}:{head['port']}"


def test_the_driver_has_the_head_to_itself():
    head, worker = option_values(HEAD["command"]), option_values(WORKER["command"])
    assert head["num-cpus"] == "0"
    assert worker["num-cpus"] == str(WORKER["cpus"])
    assert int(head["memory"]) < int(worker["memory"])
    assert HEAD["volumes"] == ["store:/store"]


@pytest.mark.parametrize("service", [HEAD, WORKER], ids=("head", "worker"))
def test_what_ray_may_give_away_fits_the_limit(service):
    options = option_values(service["command"])
    store = int(options["object-store-memory"])
    assert int(options["memory"]) + store + OVERHEAD <= int(service["mem_limit"].removesuffix("g")) * 2**30
    assert store <= int(service["shm_size"].removesuffix("m")) * 2**20
