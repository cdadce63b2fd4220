"""The example files for Ray Serve and Kubernetes say what the server knows, and their times go together."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from albireo.cli import serve_parser
from albireo.cluster import options
from albireo.cluster.options import plan_config
from albireo.frontend.auth import OPEN_PATHS
from albireo.supervisor.supervisor import STOP_TIMEOUT_S

TOOLS = Path(__file__).parent.parent.parent / "tools"


def test_the_config_file_for_ray_is_one_that_the_builder_takes() -> None:
    config = yaml.safe_load((TOOLS / "ray_serve" / "albireo.yaml").read_text())
    (application,) = config["applications"]
    assert application["import_path"] == options.IMPORT_PATH
    module, name = options.IMPORT_PATH.split(":")
    source = (TOOLS.parent / module.replace(".", "/")).with_suffix(".py").read_text()
    assert f"def {name}(" in source
    plan = plan_config(application["args"])
    assert (plan.model_name, plan.device) == ("/models/my-model", "cuda")
    assert (plan.min_replicas, plan.max_replicas, plan.shutdown_timeout_s) == (1, 4, 300)


@pytest.fixture(scope="module")
def resources() -> dict[str, Any]:
    documents = yaml.safe_load_all((TOOLS / "kubernetes" / "albireo.yaml").read_text())
    return {document["kind"]: document for document in documents}


@pytest.fixture(scope="module")
def pod(resources: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = resources["Deployment"]["spec"]["template"]["spec"]
    return spec


@pytest.fixture(scope="module")
def container(pod: dict[str, Any]) -> dict[str, Any]:
    (found,) = pod["containers"]
    return dict(found)


def flags(container: dict[str, Any]) -> Any:
    program, command, *argv = container["command"] + container["args"]
    assert (program, command) == ("albireo-run", "serve")
    return serve_parser().parse_args(argv)


def test_the_pod_s_flags_are_the_server_s_and_fit_what_it_gets(container: dict[str, Any]) -> None:
    args = flags(container)
    assert args.host == "0.0.0.0"
    assert args.port == container["ports"][0]["containerPort"]
    assert args.tensor_parallel_size == int(container["resources"]["limits"]["nvidia.com/gpu"])
    assert not args.api_key, "a key in a pod's arguments is no secret"


def test_a_pod_is_not_killed_before_its_streams_have_had_their_time(
    pod: dict[str, Any], container: dict[str, Any]
) -> None:
    needed = container["lifecycle"]["preStop"]["sleep"]["seconds"] + flags(container).shutdown_timeout + STOP_TIMEOUT_S
    assert pod["terminationGracePeriodSeconds"] > needed + 10


def test_probes_ask_what_needs_no_key(container: dict[str, Any]) -> None:
    probes = {name: container[name]["httpGet"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert {probe["path"] for probe in probes.values()} <= OPEN_PATHS
    assert {probe["port"] for probe in probes.values()} == {"http"}
    assert probes["readinessProbe"]["path"] == "/ready", "/health stays at 200 while the server stops"
    assert probes["livenessProbe"]["path"] != "/ready", "a pod that drains would be killed"


def test_a_pod_that_recovers_by_itself_has_as_long_as_its_start(container: dict[str, Any]) -> None:
    patience_s = {
        name: container[name]["periodSeconds"] * container[name]["failureThreshold"]
        for name in ("startupProbe", "livenessProbe")
    }
    assert patience_s["livenessProbe"] >= patience_s["startupProbe"], "/health is 503 while ranks load again"


def test_what_the_server_writes_has_a_place_that_can_be_written(pod: dict[str, Any], container: dict[str, Any]) -> None:
    assert container["securityContext"]["readOnlyRootFilesystem"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
    assert {"/tmp", "/cache"} <= {path for path, volume in mounts.items() if "emptyDir" in volume}
    assert mounts["/dev/shm"]["emptyDir"]["medium"] == "Memory"
    caches = [entry["value"] for entry in container["env"] if entry["name"].endswith(("HOME", "DIR"))]
    assert caches and all(path.startswith("/cache") for path in caches)


def test_labels_bring_the_resources_together(resources: dict[str, Any]) -> None:
    labels = resources["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert resources["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert resources["Service"]["spec"]["selector"] == labels
    assert resources["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert resources["Service"]["spec"]["ports"][0]["targetPort"] == "http"
