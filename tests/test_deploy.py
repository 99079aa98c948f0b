"""The container and cluster files fit together, and with the command line; nothing is built or started."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import typer
import yaml

from rxtone.cli import app

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
KINDS = {
    "Deployment": "apps/v1", "Service": "v1", "PersistentVolumeClaim": "v1", "NetworkPolicy": "networking.k8s.io/v1",
    "PodDisruptionBudget": "policy/v1",
}  # fmt: skip


def instructions() -> list[tuple[str, str]]:
    """(instruction, arguments) of the Dockerfile, continued lines joined."""
    text = re.sub(r"\\\n\s*", "", (DEPLOY / "Dockerfile").read_text("utf-8"))
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in lines]


def stage(name: str) -> list[tuple[str, str]]:
    """Instructions of one stage, its FROM first."""
    found = instructions()
    start = next(i for i, (kind, rest) in enumerate(found) if kind == "FROM" and rest.endswith(f" AS {name}"))
    end = next((i for i, (kind, _) in enumerate(found) if kind == "FROM" and i > start), len(found))
    return found[start:end]


def manifests() -> dict[str, dict]:
    names = yaml.safe_load((DEPLOY / "kubernetes" / "kustomization.yaml").read_text("utf-8"))["resources"]
    there = {path.name for path in (DEPLOY / "kubernetes").glob("*.yaml")} - {"kustomization.yaml"}
    assert set(names) == there
    found = [yaml.safe_load((DEPLOY / "kubernetes" / name).read_text("utf-8")) for name in names]
    return {manifest["kind"]: manifest for manifest in found}


def container() -> dict:
    (only,) = manifests()["Deployment"]["spec"]["template"]["spec"]["containers"]
    return only


def test_the_image_runs_as_nobody_in_particular_and_says_whether_it_lives():
    found = stage("runtime")
    kinds = [kind for kind, _ in found]
    assert dict(found)["USER"] == "10001:10001"
    assert kinds.index("USER") > max(i for i, kind in enumerate(kinds) if kind in {"RUN", "COPY"})
    assert "/health" in dict(found)["HEALTHCHECK"]
    command = json.loads(dict(found)["HEALTHCHECK"].split("CMD ", 1)[1])
    compile(command[2], "healthcheck", "exec")
    assert instructions()[-1] == ("FROM", "runtime")
    assert "image not built here" in (DEPLOY / "Dockerfile").read_text("utf-8").lower()


def test_every_stage_is_pinned_and_copies_what_the_checkout_has():
    known = set()
    for kind, rest in instructions():
        if kind == "FROM":
            image, _, name = rest.partition(" AS ")
            assert image in known or re.fullmatch(r"python:3\.\d+-slim", image), image
            known.add(name)
        if kind == "COPY" and "--from" not in rest and "${MODEL}" not in rest:
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists(), source
                kept = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
                assert f"!{source.removeprefix('./')}" in kept, source


def test_the_steps_of_the_build_are_shell():
    (run,) = [rest for kind, rest in stage("build") if kind == "RUN"]
    assert run.endswith("sh deploy/install.sh /opt/rxtone")
    subprocess.run(["sh", "-n", str(DEPLOY / "install.sh")], check=True)
    missing = subprocess.run(["sh", str(DEPLOY / "install.sh")], check=False, capture_output=True, text=True)
    assert missing.returncode != 0
    assert "name the folder of the virtual environment" in missing.stderr


def test_manifests_are_of_known_kinds_and_select_the_same_pods():
    found = manifests()
    assert {kind: manifest["apiVersion"] for kind, manifest in found.items()} == KINDS
    for manifest in found.values():
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", manifest["metadata"]["name"])
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert found["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert found["Service"]["spec"]["selector"] == labels
    assert found["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == labels
    assert found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert found["PodDisruptionBudget"]["spec"]["minAvailable"] < found["Deployment"]["spec"]["replicas"]


def test_ports_probes_and_volumes_meet():
    found, one = manifests(), container()
    (port,) = one["ports"]
    assert found["Service"]["spec"]["ports"][0]["targetPort"] == port["name"] == "http"
    assert found["NetworkPolicy"]["spec"]["ingress"][0]["ports"][0]["port"] == port["containerPort"] == 8000
    assert str(port["containerPort"]) == one["args"][one["args"].index("--port") + 1]
    assert dict(stage("runtime"))["EXPOSE"] == "8000"
    probes = {name: one[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert {probe["port"] for probe in probes.values()} == {"http"}
    assert [probe["path"] for probe in probes.values()] == ["/health", "/health", "/ready"]
    mounts = {mount["name"]: mount["mountPath"] for mount in one["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in found["Deployment"]["spec"]["template"]["spec"]["volumes"]}
    assert set(mounts) == set(volumes)
    assert volumes["model"]["persistentVolumeClaim"]["claimName"] == found["PersistentVolumeClaim"]["metadata"]["name"]
    assert one["args"][1] == mounts["model"]
    token = Path(one["args"][one["args"].index("--token-file") + 1])
    assert str(token.parent) == mounts["token"]


def test_the_pod_can_do_little():
    pod = manifests()["Deployment"]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert (
        f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}"
        == dict(stage("runtime"))["USER"]
    )
    assert pod["automountServiceAccountToken"] is False
    limits = container()["securityContext"]
    assert limits == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}
    }  # fmt: skip
    assert "memory" in container()["resources"]["limits"]
    assert manifests()["NetworkPolicy"]["spec"]["egress"] == []


def test_what_is_started_is_a_command_that_exists():
    commands = typer.main.get_command(app).commands
    given = [json.loads(dict(stage("runtime"))["CMD"]), container()["args"]]
    for command, *arguments in given:
        assert command == "serve"
        options = {name for option in commands["serve"].params for name in option.opts}
        assert {argument for argument in arguments if argument.startswith("--")} <= options


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl")
def test_kubectl_renders_the_manifests():
    rendered = subprocess.run(
        ["kubectl", "kustomize", str(DEPLOY / "kubernetes")], check=True, capture_output=True, text=True
    )
    assert {manifest["kind"] for manifest in yaml.safe_load_all(rendered.stdout)} == set(KINDS)
