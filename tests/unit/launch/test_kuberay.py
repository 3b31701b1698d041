"""launch/kuberay against a schema of KubeRay's fields, and against what verl and `cluster=2x8` need of them."""

import copy
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from places import ROOT

FOLDER = ROOT / "launch" / "kuberay"
SCHEMA = yaml.safe_load(Path(__file__).with_name("kuberay_schema.yaml").read_text())
RAYS = ["rayjob.yaml", "raycluster.yaml"]


def manifest(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text())


def accepted(document: Any) -> bool:
    return Draft202012Validator(SCHEMA).is_valid(document)


def cluster(document: Any) -> Any:
    return document["spec"].get("rayClusterSpec", document["spec"])


def leaves(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every value of a document that is neither a mapping nor a list, with the way to it."""
    if not isinstance(node, dict | list):
        yield path, node
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from leaves(value, (*path, key))


def changed(document: Any, path: tuple[Any, ...], key: Any, value: Any) -> Any:
    """A copy whose entry at `path` is `value` under `key`."""
    result = copy.deepcopy(document)
    parent = result
    for step in path[:-1]:
        parent = parent[step]
    del parent[path[-1]]
    parent.insert(key, value) if isinstance(parent, list) else parent.update({key: value})
    return result


def test_every_manifest_fits_the_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    names = sorted(path.name for path in FOLDER.iterdir())
    assert names == ["raycluster.yaml", "rayjob.yaml", "shared.yaml"]
    for name in names:
        assert accepted(manifest(name)), name


FREE = {"env", "requests", "limits", "rayStartParams"}
"""Mappings whose keys are the user's, and the environment."""


@pytest.mark.parametrize("name", [*RAYS, "shared.yaml"])
def test_a_misspelt_field_or_another_type_is_refused_anywhere(name: str) -> None:
    document = manifest(name)
    tried = 0
    for path, value in leaves(document):
        other = {"no": "mapping"} if isinstance(value, str) else f"{value}!"
        assert not accepted(changed(document, path, path[-1], other)), path
        if isinstance(path[-1], str) and not FREE & set(path[-2:-1]):
            assert not accepted(changed(document, path, f"{path[-1]}s", value)), path
        tried += 1
    assert tried >= 5


@pytest.mark.parametrize("name", RAYS)
def test_the_two_manifests_and_cluster_2x8_agree(name: str) -> None:
    spec = cluster(manifest(name))
    assert spec == cluster(manifest(RAYS[0]))
    [group] = spec["workerGroupSpecs"]
    [worker] = group["template"]["spec"]["containers"]
    [head] = spec["headGroupSpec"]["template"]["spec"]["containers"]
    nodes, gpus = group["replicas"], worker["resources"]["limits"]["nvidia.com/gpu"]
    assert re.findall(r"\bcluster=(\w+)", (FOLDER / name).read_text()) == [f"{nodes}x{gpus}"] * 2
    assert (nodes, gpus) == (group["minReplicas"], worker["resources"]["requests"]["nvidia.com/gpu"])
    assert group["maxReplicas"] == nodes and group["rayStartParams"]["num-gpus"] == str(gpus)
    assert spec["headGroupSpec"]["rayStartParams"]["num-gpus"] == "0" and "nvidia.com/gpu" not in head["resources"]
    assert all(head[key] == worker[key] for key in ("image", "env", "envFrom", "volumeMounts", "livenessProbe"))


@pytest.mark.parametrize("name", RAYS)
def test_pods_share_a_disk_and_shared_memory_is_memory(name: str) -> None:
    claim = manifest("shared.yaml")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    spec = cluster(manifest(name))
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in pod["containers"][0]["volumeMounts"]}
        assert mounts["/shared"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        assert mounts["/dev/shm"]["emptyDir"]["medium"] == "Memory"


def secret_literals(document: Any) -> list[str]:
    """Environment variables with a value in the manifest that look like a secret."""
    named = [(node["name"], node["value"]) for node in mappings(document) if {"name", "value"} <= node.keys()]
    return [name for name, _ in named if re.search("KEY|TOKEN|SECRET|PASSWORD", name)]


def mappings(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from mappings(value)


@pytest.mark.parametrize("name", RAYS)
def test_secrets_come_from_a_secret_alone(name: str) -> None:
    document = manifest(name)
    [worker] = cluster(document)["workerGroupSpecs"][0]["template"]["spec"]["containers"]
    assert worker["envFrom"] == [{"secretRef": {"name": "opd-secrets", "optional": True}}]
    assert secret_literals(document) == []
    assert not re.search(r"\b(hf_|wandb_v1_)\w{20,}|\b[0-9a-f]{40}\b", (FOLDER / name).read_text())
    worker["env"] = [{"name": "WANDB_API_KEY", "value": "0"}]
    assert secret_literals(document) == ["WANDB_API_KEY"]


@pytest.mark.parametrize(
    ("preflight", "expected"), [(0, ["opd_verl.nodes", "verl.trainer.main_ppo"]), (1, ["opd_verl.nodes"])]
)
def test_the_entrypoint_trains_after_the_preflight_on_the_same_overrides(
    preflight: int, expected: list[str], tmp_path: Path
) -> None:
    """Ray runs the entrypoint in sh; so does this test; `python` writes down what it was asked for."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$@"\n' + f'[ "$2" != opd_verl.nodes ] || exit {preflight}\n')
    python.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    entrypoint = manifest("rayjob.yaml")["spec"]["entrypoint"]
    run = subprocess.run(entrypoint, shell=True, env=os.environ | {"PATH": path}, capture_output=True, text=True)
    asked = [line.split() for line in run.stdout.splitlines()]
    assert [words[:2] for words in asked] == [["-m", module] for module in expected]
    assert all(words[2:] == asked[0][2:] for words in asked) and run.returncode == preflight
    assert {"recipe=opd", "cluster=2x8", "trainer.save_freq=20", "trainer.resume_mode=auto"} < set(asked[0])
    assert all("=/shared/" in word for word in asked[0] if re.search("path|files|dir", word))


def test_a_job_is_tried_again_paused_and_cleared_up() -> None:
    spec = manifest("rayjob.yaml")["spec"]
    assert spec["backoffLimit"] > 0 and spec["suspend"] is False
    # KubeRay refuses to suspend a job whose cluster would stay, and ignores the time to live.
    assert spec["shutdownAfterJobFinishes"] is True and spec["ttlSecondsAfterFinished"] > 0
    assert spec["submissionMode"] == "HTTPMode", "another mode reads `&&` in a shell before Ray does"
