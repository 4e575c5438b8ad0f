"""cluster/aws.yaml as Ray's launcher carries it out, against moto's stand-in for EC2 and IAM."""

import json
import os
import subprocess
import sys

import pytest

from tests.deploy.files import CLUSTER

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

LAUNCH = """
import json, sys, time
import boto3, yaml
from moto import mock_aws
from ray.autoscaler._private import util
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

time.sleep = lambda seconds: None  # the launcher waits for what takes time on EC2
with mock_aws():
    config = util.prepare_config(yaml.safe_load(open(sys.argv[1])))
    config = AWSNodeProvider.fillout_available_node_types_resources(config)
    util.validate_config(config)
    ec2 = boto3.client("ec2", config["provider"]["region"])
    image = ec2.describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
    for kind in config["available_node_types"].values():
        kind["node_config"]["ImageId"] = image
    config = AWSNodeProvider.bootstrap_config(config)
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    for name, kind in config["available_node_types"].items():
        provider.create_node(kind["node_config"], {"ray-node-type": name}, 1)
    found = [one for group in ec2.describe_instances()["Reservations"] for one in group["Instances"]]
    groups = {one["GroupId"]: one["IpPermissions"] for one in ec2.describe_security_groups()["SecurityGroups"]}
    print(json.dumps({
        "types": {one["InstanceType"]: one["MetadataOptions"]["HttpTokens"] for one in found},
        "rules": [rule for one in found for group in one["SecurityGroups"] for rule in groups[group["GroupId"]]],
        "resources": {name: kind["resources"] for name, kind in config["available_node_types"].items()},
    }))
"""


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    pytest.importorskip("moto")
    home = tmp_path_factory.mktemp("home")
    (home / ".ssh").mkdir()
    fake = {"AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none", "MOTO_IAM_LOAD_MANAGED_POLICIES": "true"}
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RAY_"))}
    command = [sys.executable, "-c", LAUNCH, str(CLUSTER / "aws.yaml")]
    done = subprocess.run(
        command, env=environment | fake | {"HOME": str(home)}, capture_output=True, text=True, check=False, timeout=500
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_head_and_a_worker_with_guarded_metadata(launched):
    assert launched["types"] == {"m7i.xlarge": "required", "m7i.2xlarge": "required"}


def test_only_ssh_is_open_to_the_world(launched):
    world = [rule for rule in launched["rules"] if rule["IpRanges"]]
    assert {(rule["IpProtocol"], rule["FromPort"], rule["ToPort"]) for rule in world} == {("tcp", 22, 22)}


def test_the_autoscaler_counts_on_workers_only(launched):
    """Ray counts seven tenths of a machine's memory, and so does node.sh."""
    head, worker = launched["resources"]["head"], launched["resources"]["worker"]
    assert head["CPU"] == 0
    assert worker["CPU"] == 8
    assert worker["memory"] == pytest.approx(0.7 * 32 * 2**30, rel=0.01)
