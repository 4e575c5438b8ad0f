"""The cluster launcher's files: Ray's own schema, and what a cluster of lipray needs."""

import json
import os
from importlib.resources import files

import pytest
from jsonschema import Draft7Validator

from tests.deploy.files import CLUSTER, PINS, ROOT, WHEEL, document

LAUNCHERS = ("onpremise.yaml", "aws.yaml")
BUILT = {f"dist/{WHEEL}", "~/.ray/auth_token"}
"""What is not in the repository, and made before ``ray up``."""


pytestmark = pytest.mark.usefixtures("ray_library")


@pytest.fixture(params=LAUNCHERS)
def config(request):
    return document(CLUSTER / request.param)


def test_it_follows_the_published_schema(config):
    schema = json.loads(files("ray.autoscaler").joinpath("ray-schema.json").read_text())
    assert [fault.message for fault in Draft7Validator(schema).iter_errors(config)] == []


def test_the_schema_is_not_satisfied_by_anything(config):
    schema = json.loads(files("ray.autoscaler").joinpath("ray-schema.json").read_text())
    assert not Draft7Validator(schema).is_valid(config | {"min_workers": 2})


def test_ray_accepts_it_with_its_defaults_filled_in(config):
    util = pytest.importorskip("ray.autoscaler._private.util")
    util.validate_config(util.prepare_config(config))


def test_no_default_command_of_the_launcher_is_left(config):
    """They begin with ending every Ray on the machine, and start the head without what lipray needs."""
    util = pytest.importorskip("ray.autoscaler._private.util")
    whole = util.prepare_config(config)
    assert [one.removeprefix("RAY_enable_autoscaler_v2=0 ") for one in whole["head_start_ray_commands"]] == [
        "bash ~/lipray/node.sh head"
    ]
    assert whole["worker_start_ray_commands"] == ["bash ~/lipray/node.sh worker $RAY_HEAD_IP"]
    commands = [*whole["setup_commands"], *whole["head_setup_commands"], *whole["worker_setup_commands"]]
    assert all("~/lipray/" in command or "auth_token" in command for command in commands)


def test_what_is_mounted_is_there(config):
    mounts = config["file_mounts"]
    for remote, local in mounts.items():
        assert remote.startswith("~/")
        assert local in BUILT or (ROOT / local).exists(), local
    assert ("~/.ray/auth_token", "~/.ray/auth_token") in mounts.items()
    assert mounts[f"~/lipray/{WHEEL}"] == f"dist/{WHEEL}"


def test_every_node_installs_the_same_lipray_and_keeps_the_token_to_itself(config):
    (install,) = [command for command in config["setup_commands"] if "install.sh" in command]
    assert install.split() == [
        *("bash", "~/lipray/install.sh", "~/lipray/env"),
        *(f"~/lipray/{WHEEL}", "~/lipray/constraints.txt", "onnx,s3"),
    ]
    assert config["setup_commands"].index("chmod 600 ~/.ray/auth_token") < config["setup_commands"].index(install)


def test_a_worker_is_always_there_and_the_head_offers_no_cpus():
    """lipray refuses a plan that no living node can run; the driver's node runs no tasks."""
    types = document(CLUSTER / "aws.yaml")["available_node_types"]
    head, worker = types["head"], types["worker"]
    assert head["resources"] == {"CPU": 0}
    assert 1 <= worker["min_workers"] <= worker["max_workers"] <= document(CLUSTER / "aws.yaml")["max_workers"]


def test_machines_in_the_cloud_are_not_left_over_and_their_disks_are_encrypted():
    config = document(CLUSTER / "aws.yaml")
    assert config["provider"]["cache_stopped_nodes"] is False
    for kind in config["available_node_types"].values():
        assert kind["node_config"]["MetadataOptions"]["HttpTokens"] == "required"
        assert all(disk["Ebs"]["Encrypted"] for disk in kind["node_config"]["BlockDeviceMappings"])


def test_the_head_in_the_cloud_can_start_workers():
    assert "boto3" in PINS
    (command,) = document(CLUSTER / "aws.yaml")["head_setup_commands"]
    assert command.startswith("~/lipray/env/bin/python -m pip")
    assert "--constraint ~/lipray/constraints.txt" in command


def test_machines_on_premise_are_all_used():
    """By the older autoscaler: see test_ray_up.py."""
    config = document(CLUSTER / "onpremise.yaml")
    assert config["head_start_ray_commands"][0].startswith("RAY_enable_autoscaler_v2=0 ")
    assert config["max_workers"] == len(config["provider"]["worker_ips"])
    # Addresses for documentation, which lead nowhere (RFC 5737).
    assert all(ip.startswith("192.0.2.") for ip in [config["provider"]["head_ip"], *config["provider"]["worker_ips"]])
    assert os.path.basename(config["auth"]["ssh_private_key"]) == "lipray"  # noqa: PTH119 - a path with ~
