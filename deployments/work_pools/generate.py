"""Write the job templates of the work pools: Prefect's own, with what our runs need.

    python deployments/work_pools/generate.py          write them
    python deployments/work_pools/generate.py --check  fail if they are stale

Run it after raising Prefect's pins; needs prefect-docker and prefect-kubernetes (extra `dev`).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from prefect.workers.process import ProcessWorker
from prefect_docker.worker import DockerWorker
from prefect_kubernetes.worker import KubernetesWorker

FOLDER = Path(__file__).parent
IMAGE = "eigenshift:latest"
GPU_IMAGE = "eigenshift:latest-gpu"
UNPRIVILEGED = 10001
"""User and group of the image (containers/Dockerfile)."""
SECRET = "eigenshift-storage"  # noqa: S105 - the name of a Kubernetes secret
NETWORK = "eigenshift_default"
"""Of the compose file's project: only there are `server` and `storage` known by these names."""
GPU_REQUEST = {"Driver": "nvidia", "Count": 1, "Capabilities": [["gpu"]]}


def make_process() -> dict[str, Any]:
    """Runs as processes of the worker; a GPU of the worker's machine is found by itself."""
    return ProcessWorker.get_default_base_job_template()


def make_docker(*, has_gpu: bool) -> dict[str, Any]:
    """A container per run. Shared memory is for the workers that a run may start (Ray, Dask)."""
    template = DockerWorker.get_default_base_job_template()
    container: dict[str, Any] = {"shm_size": "2g", "security_opt": ["no-new-privileges"]}
    if has_gpu:
        container["device_requests"] = [GPU_REQUEST]
    set_defaults(
        template,
        image=GPU_IMAGE if has_gpu else IMAGE,
        image_pull_policy="IfNotPresent",
        auto_remove=True,
        networks=[NETWORK],
        mem_limit="64g" if has_gpu else "16g",
        container_create_kwargs=container,
    )
    return template


def make_kubernetes(*, has_gpu: bool) -> dict[str, Any]:
    """A job per run, without privileges; the store's credentials are a secret of the namespace."""
    template = KubernetesWorker.get_default_base_job_template()
    set_defaults(
        template,
        image=GPU_IMAGE if has_gpu else IMAGE,
        namespace="eigenshift",
        service_account_name="eigenshift-run",
        finished_job_ttl=24 * 3600,
        pod_watch_timeout_seconds=600,  # a node may have to be started first
        cpu_request="8" if has_gpu else "2",
        cpu_limit="16" if has_gpu else "4",
        memory_request="48Gi" if has_gpu else "8Gi",
        memory_limit="64Gi" if has_gpu else "16Gi",
    )
    pod = template["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
    pod["securityContext"] = {
        "runAsNonRoot": True,
        "runAsUser": UNPRIVILEGED,
        "runAsGroup": UNPRIVILEGED,
        "fsGroup": UNPRIVILEGED,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    pod["automountServiceAccountToken"] = False
    pod["volumes"] = [
        {"name": "scratch", "emptyDir": {}},
        {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"}},
    ]
    container = pod["containers"][0]
    container["envFrom"] = [{"secretRef": {"name": SECRET}}]
    container["securityContext"] = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    container["volumeMounts"] = [
        {"name": "scratch", "mountPath": "/scratch"},
        {"name": "shared-memory", "mountPath": "/dev/shm"},  # noqa: S108 - a mount in the pod
    ]
    if has_gpu:
        template["variables"]["properties"]["gpus"] = {
            "title": "GPUs",
            "description": "NVIDIA GPUs of the run's pod.",
            "type": "integer",
            "default": 1,
            "minimum": 1,
        }
        container["resources"]["limits"]["nvidia.com/gpu"] = "{{ gpus }}"
        pod["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists"}]
    return template


def set_defaults(template: dict[str, Any], **defaults: Any) -> None:
    """Change defaults of a template's variables; each must exist."""
    for name, value in defaults.items():
        template["variables"]["properties"][name]["default"] = value


MAKE = {
    "process": make_process,
    "docker": lambda: make_docker(has_gpu=False),
    "docker-gpu": lambda: make_docker(has_gpu=True),
    "kubernetes": lambda: make_kubernetes(has_gpu=False),
    "kubernetes-gpu": lambda: make_kubernetes(has_gpu=True),
}


def main(words: list[str]) -> None:
    """Write or check every template."""
    for name, make in MAKE.items():
        path = FOLDER / f"{name}.json"
        text = json.dumps(make(), indent=2) + "\n"
        if words == ["--check"]:
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                sys.exit(f"{path}: stale; run python deployments/work_pools/generate.py")
        else:
            path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
