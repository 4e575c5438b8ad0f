"""The manifests for Kubernetes: its published schema for pods and the rest, KubeRay's facts, and lipray's needs."""

import copy
import re

import pytest

from lipray.config import parse_duration
from tests.deploy.files import CLUSTER, ENVIRONMENT, IMAGE, PINS, document, documents, estimate_options
from tests.deploy.kuberay import NAME_LENGTH, faults_of_cluster, faults_of_job

FOLDER = CLUSTER / "kuberay"
KUBERNETES = "1.30"
OVERHEAD = 2 * 2**30
"""Bytes of a worker's limit that are left to Ray's own processes."""

JOB = document(FOLDER / "rayjob.yaml")
RAY = document(FOLDER / "raycluster.yaml")
READER = document(FOLDER / "reader.yaml")
SPEC = RAY["spec"]
GROUPS = [SPEC["headGroupSpec"], *SPEC["workerGroupSpecs"]]
TEMPLATES = {
    "head": SPEC["headGroupSpec"]["template"],
    "worker": SPEC["workerGroupSpecs"][0]["template"],
    "submitter": JOB["spec"]["submitterPodTemplate"],
    "reader": {"metadata": READER["metadata"], "spec": READER["spec"]},
}
UNITS = {"Mi": 2**20, "Gi": 2**30}


def quantity(text):
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi)", text).groups()
    return int(number) * UNITS[unit]


@pytest.mark.parametrize(
    "manifest",
    [
        *documents(FOLDER / "namespace.yaml"),
        READER,
        *({"apiVersion": "v1", "kind": "PodTemplate", "template": pod} for pod in TEMPLATES.values()),
    ],
    ids=lambda manifest: manifest["kind"],
)
def test_it_follows_the_published_schema(manifest):
    schemas = pytest.importorskip("kubernetes_validate")
    schemas.validate(manifest, KUBERNETES, strict=True)


def test_the_schema_sees_a_misspelt_field():
    schemas = pytest.importorskip("kubernetes_validate")
    pod = copy.deepcopy(TEMPLATES["worker"])
    pod["spec"]["containers"][0]["volumeMount"] = []
    with pytest.raises(schemas.ValidationError, match="volumeMount"):
        schemas.validate({"apiVersion": "v1", "kind": "PodTemplate", "template": pod}, KUBERNETES, strict=True)


def test_kuberay_would_accept_them():
    assert faults_of_cluster(SPEC) == []
    assert faults_of_job(JOB["spec"]) == []
    for manifest in (JOB, RAY):
        assert manifest["apiVersion"] == "ray.io/v1"
        assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", manifest["metadata"]["name"])
        assert len(manifest["metadata"]["name"]) <= NAME_LENGTH


@pytest.mark.parametrize(
    "change",
    [
        {"deletionStrategy": {}},
        {"shutdownAfterJobFinishes": False},
        {"submissionMode": "SidecarMode"},
        {"activeDeadlineSeconds": 0},
        {"backofLimit": 1},
        {"rayClusterSpec": SPEC | {"rayVersion": "2.51.0"}},
        {"rayClusterSpec": SPEC | {"authOption": {}}},
    ],
    ids=str,
)
def test_kuberay_would_refuse_these(change):
    assert len(faults_of_job(JOB["spec"] | change)) == 1


def test_the_job_makes_the_same_cluster():
    assert JOB["spec"]["rayClusterSpec"] == SPEC


def test_versions_agree():
    assert SPEC["rayVersion"] == PINS["ray"]
    images = {container["image"] for pod in TEMPLATES.values() for container in pod["spec"]["containers"]}
    assert images == {IMAGE}


def test_a_token_is_asked_for_and_not_in_the_file():
    assert SPEC["authOptions"] == {"mode": "token", "secretName": "lipray-ray-token"}
    kinds = {manifest["kind"] for path in FOLDER.glob("*.yaml") for manifest in documents(path)}
    assert "Secret" not in kinds
    for path in FOLDER.glob("*.yaml"):
        assert "RAY_AUTH_TOKEN" not in path.read_text()


def test_the_dashboard_is_not_published():
    assert SPEC["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert "enableIngress" not in SPEC["headGroupSpec"]
    kinds = {manifest["kind"] for path in FOLDER.glob("*.yaml") for manifest in documents(path)}
    assert kinds == {"Namespace", "NetworkPolicy", "PersistentVolumeClaim", "Pod", "RayCluster", "RayJob"}


def test_the_network_policy_covers_all_pods_of_a_cluster():
    (policy,) = [one for one in documents(FOLDER / "namespace.yaml") if one["kind"] == "NetworkPolicy"]
    selected = policy["spec"]["podSelector"]["matchLabels"].items()
    for name in ("head", "worker", "submitter"):
        assert selected <= TEMPLATES[name]["metadata"]["labels"].items()
    own, operator = policy["spec"]["ingress"]
    assert own["from"] == [{"podSelector": {"matchLabels": dict(selected)}}]
    assert [port["port"] for port in operator["ports"]] == [8265]


@pytest.mark.parametrize("pod", TEMPLATES.values(), ids=TEMPLATES)
def test_pods_satisfy_the_restricted_policy(pod):
    """What the namespace enforces (Pod Security Standards, restricted)."""
    spec = pod["spec"]
    assert not spec.keys() & {"hostNetwork", "hostPID", "hostIPC"}
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert all(volume.keys() <= {"name", "persistentVolumeClaim", "emptyDir"} for volume in spec.get("volumes", []))
    for container in spec["containers"]:
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def test_the_autoscaler_beside_the_head_satisfies_it_too():
    container = SPEC["autoscalerOptions"]["securityContext"]
    assert container == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


@pytest.mark.parametrize("pod", TEMPLATES.values(), ids=TEMPLATES)
def test_memory_is_limited_to_what_is_requested(pod):
    for container in pod["spec"]["containers"]:
        resources = container["resources"]
        assert resources["requests"] == resources["limits"]
        assert quantity(resources["limits"]["memory"]) > 0


@pytest.mark.parametrize("group", GROUPS, ids=("head", "worker"))
def test_what_ray_may_give_away_fits_the_limit(group):
    """KubeRay would offer the whole limit to tasks, and the object store comes on top, in the same limit."""
    (container,) = group["template"]["spec"]["containers"]
    params = group["rayStartParams"]
    given = int(params["memory"]) + int(params["object-store-memory"])
    assert given + OVERHEAD <= quantity(container["resources"]["limits"]["memory"])
    assert {one["name"]: one["value"] for one in container["env"]} == ENVIRONMENT


def test_the_driver_has_the_head_to_itself_and_a_worker_is_always_there():
    head, worker = GROUPS
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert int(worker["rayStartParams"]["num-cpus"]) == int(
        worker["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"]
    )
    assert worker["minReplicas"] >= 1
    # No plan counts on the memory of a node that runs no tasks.
    assert int(head["rayStartParams"]["memory"]) < int(worker["rayStartParams"]["memory"])


def test_a_run_outlives_its_cluster_and_goes_on_in_the_next():
    options = estimate_options(JOB["spec"]["entrypoint"])
    assert options["address"] == "auto"
    assert options["run_id"]
    (container,) = TEMPLATES["head"]["spec"]["containers"]
    (mount,) = container["volumeMounts"]
    assert options["store"] == mount["mountPath"]
    (volume,) = TEMPLATES["head"]["spec"]["volumes"]
    claims = [one for one in documents(FOLDER / "namespace.yaml") if one["kind"] == "PersistentVolumeClaim"]
    assert [volume["persistentVolumeClaim"]["claimName"]] == [claim["metadata"]["name"] for claim in claims]
    assert JOB["spec"]["backoffLimit"] > 0


def test_the_budget_ends_before_the_deadline_after_which_nothing_is_retried():
    options = estimate_options(JOB["spec"]["entrypoint"])
    spec = JOB["spec"]
    assert parse_duration(options["budget"]) + spec["preRunningDeadlineSeconds"] <= spec["activeDeadlineSeconds"]
