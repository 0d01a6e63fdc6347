"""The part of KubeRay's resource definitions (1.6, ray.io/v1) that the manifests use, closed: a key that is
not written down here is a typo. Pods are Kubernetes' own and checked down to their containers."""

from __future__ import annotations

from typing import Any

TEXT: dict[str, Any] = {"type": "string"}
COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}
FLAG: dict[str, Any] = {"type": "boolean"}
WORDS: dict[str, Any] = {"type": "object", "additionalProperties": TEXT}


def block(required: list[str], **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


QUANTITIES = block([], requests=WORDS, limits=WORDS)
CONTAINER = block(
    ["name", "image"],
    name=TEXT,
    image=TEXT,
    env={"type": "array", "items": block(["name", "value"], name=TEXT, value=TEXT)},
    resources=QUANTITIES,
    volumeMounts={"type": "array", "items": block(["name", "mountPath"], name=TEXT, mountPath=TEXT)},
)
POD = block(
    ["spec"],
    spec=block(
        ["containers", "restartPolicy"],
        restartPolicy={"enum": ["Never"]},  # the autoscaler's second version asks for it
        containers={"type": "array", "items": CONTAINER, "minItems": 1},
        volumes={
            "type": "array",
            "items": block(
                ["name"],
                name=TEXT,
                persistentVolumeClaim=block(["claimName"], claimName=TEXT),
                emptyDir=block([], medium=TEXT, sizeLimit=TEXT),
            ),
        },
        nodeSelector=WORDS,
        tolerations={
            "type": "array",
            "items": block([], key=TEXT, operator=TEXT, value=TEXT, effect=TEXT),
        },
    ),
)
CLUSTER_SPEC = block(
    ["headGroupSpec", "workerGroupSpecs"],
    rayVersion=TEXT,
    authOptions=block(["mode"], mode={"enum": ["token", "disabled"]}, secretName=TEXT),
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=block(
        [],
        version={"enum": ["v1", "v2"]},
        upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
        idleTimeoutSeconds=COUNT,
    ),
    headGroupSpec=block(["template", "rayStartParams"], template=POD, rayStartParams=WORDS),
    workerGroupSpecs={
        "type": "array",
        "items": block(
            ["groupName", "minReplicas", "maxReplicas", "template"],
            groupName=TEXT,
            replicas=COUNT,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            labels=WORDS,
            rayStartParams=WORDS,
            template=POD,
        ),
    },
)
METADATA = block(["name"], name=TEXT)
SCHEMAS = {
    "RayCluster": block(
        ["apiVersion", "kind", "metadata", "spec"],
        apiVersion={"const": "ray.io/v1"},
        kind={"const": "RayCluster"},
        metadata=METADATA,
        spec=CLUSTER_SPEC,
    ),
    "RayJob": block(
        ["apiVersion", "kind", "metadata", "spec"],
        apiVersion={"const": "ray.io/v1"},
        kind={"const": "RayJob"},
        metadata=METADATA,
        spec=block(
            ["entrypoint", "rayClusterSpec"],
            entrypoint=TEXT,
            submissionMode={"enum": ["K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"]},
            backoffLimit=COUNT,
            shutdownAfterJobFinishes=FLAG,
            ttlSecondsAfterFinished=COUNT,
            runtimeEnvYAML=TEXT,
            rayClusterSpec=CLUSTER_SPEC,
        ),
    ),
}
