"""Facts of KubeRay 1.7 (its API reference, and the operator's own validation), because no package brings its schema.

Only fields that the manifests may use are listed; what is not listed here is to be looked up before it is used.
"""

CLUSTER_FIELDS = {
    "authOptions",
    "autoscalerOptions",
    "enableInTreeAutoscaling",
    "headGroupSpec",
    "rayVersion",
    "workerGroupSpecs",
}
HEAD_FIELDS = {"rayStartParams", "serviceType", "template"}
WORKER_FIELDS = {"groupName", "maxReplicas", "minReplicas", "rayStartParams", "replicas", "template"}
AUTH_FIELDS = {"mode": {"token"}, "secretName": None}
AUTOSCALER_FIELDS = {"idleTimeoutSeconds", "resources", "securityContext", "upscalingMode", "version"}
JOB_FIELDS = {
    "activeDeadlineSeconds",
    "backoffLimit",
    "entrypoint",
    "preRunningDeadlineSeconds",
    "rayClusterSpec",
    "shutdownAfterJobFinishes",
    "submissionMode",
    "submitterConfig",
    "submitterPodTemplate",
    "ttlSecondsAfterFinished",
}
SUBMISSION_MODES = {"K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"}
UPSCALING_MODES = {"Default", "Aggressive", "Conservative"}
NAME_LENGTH = 47
"""Longest name of a RayJob or RayCluster; names are DNS labels."""


def faults_of_cluster(spec):
    """What the operator, or the API server before it, would refuse in the spec of a RayCluster."""
    found = [f"unknown field {field}" for field in spec.keys() - CLUSTER_FIELDS]
    auth = spec.get("authOptions", {})
    found += [f"unknown field authOptions.{field}" for field in auth.keys() - AUTH_FIELDS.keys()]
    if auth.get("mode") == "token" and version(spec.get("rayVersion", "0")) < (2, 52):
        found.append("authOptions.mode token needs a rayVersion of 2.52 or newer")
    options = spec.get("autoscalerOptions", {})
    found += [f"unknown field autoscalerOptions.{field}" for field in options.keys() - AUTOSCALER_FIELDS]
    if options.get("upscalingMode", "Default") not in UPSCALING_MODES:
        found.append("unknown upscalingMode")
    head, workers = spec["headGroupSpec"], spec["workerGroupSpecs"]
    found += [f"unknown field headGroupSpec.{field}" for field in head.keys() - HEAD_FIELDS]
    for group in (head, *workers):
        params = group["rayStartParams"]
        found += [f"rayStartParams.{key} is no string" for key, value in params.items() if not isinstance(value, str)]
        never = group["template"]["spec"].get("restartPolicy", "Never") == "Never"
        if options.get("version") == "v2" and spec.get("enableInTreeAutoscaling") and not never:
            found.append("autoscaler v2 needs restartPolicy Never")
    for group in workers:
        found += [f"unknown field workerGroupSpecs.{field}" for field in group.keys() - WORKER_FIELDS]
        if not 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]:
            found.append("minReplicas, replicas and maxReplicas are not in order")
    return found


def faults_of_job(spec):
    """What would be refused in the spec of a RayJob that makes its own cluster."""
    found = [f"unknown field {field}" for field in spec.keys() - JOB_FIELDS - {"deletionStrategy", "clusterSelector"}]
    if spec.get("submissionMode", "K8sJobMode") not in SUBMISSION_MODES:
        found.append("unknown submissionMode")
    if "deletionStrategy" in spec and spec.get("shutdownAfterJobFinishes"):
        found.append("shutdownAfterJobFinishes and deletionStrategy exclude each other")
    if "clusterSelector" in spec and spec.get("backoffLimit", 0) > 0:
        found.append("clusterSelector and backoffLimit exclude each other")
    if spec.get("ttlSecondsAfterFinished", 0) > 0 and not spec.get("shutdownAfterJobFinishes"):
        found.append("ttlSecondsAfterFinished needs shutdownAfterJobFinishes")
    if spec.get("submissionMode") == "SidecarMode" and spec.keys() & {"submitterPodTemplate", "submitterConfig"}:
        found.append("SidecarMode has no submitter")
    limits = ("activeDeadlineSeconds", "preRunningDeadlineSeconds")
    found += [f"{limit} is not positive" for limit in limits if spec.get(limit, 1) <= 0]
    return found + faults_of_cluster(spec["rayClusterSpec"])


def version(text):
    return tuple(int(part) for part in text.split(".")[:2])
