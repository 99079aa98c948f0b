"""The Slurm and KubeRay files have the form that those systems read, and call commands that exist; nothing is run."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import typer
import yaml

from rxtone.cli import app
from rxtone.space import shipped_spaces

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "deploy" / "slurm").glob("*.sbatch"))
JOB = ROOT / "deploy" / "kuberay" / "rayjob.yaml"


def check_command(arguments: list[str], name: str) -> None:
    command = typer.main.get_command(app).commands[name]
    options = {option for parameter in command.params for option in parameter.opts}
    given = {argument for argument in arguments if argument.startswith("--")}
    assert given
    assert given <= options


def test_every_file_is_marked_as_not_run_here():
    assert len(SCRIPTS) == 2
    for path in (*SCRIPTS, JOB):
        assert "Not run here" in path.read_text("utf-8")
    assert (ROOT / "docs" / "clusters.md").read_text("utf-8").count("Not run here") == 2


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_slurm_scripts_are_bash_with_directives_before_the_first_command(path):
    subprocess.run(["bash", "-n", str(path)], check=True)
    lines = path.read_text("utf-8").splitlines()
    assert lines[0] == "#!/bin/bash"
    first = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    directives = [line for line in lines if line.startswith("#SBATCH")]
    assert all(line.startswith("#SBATCH") is False for line in lines[first:])  # Slurm stops reading them there
    keys = [re.fullmatch(r"#SBATCH --([a-z-]+)=(\S+)", line).group(1) for line in directives]
    assert keys == ["job-name", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "time", "output"]
    assert lines[first] == "set -euo pipefail"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_slurm_scripts_call_a_command_that_exists(path):
    text = path.read_text("utf-8").replace("\\\n", " ")
    (line,) = [line for line in text.splitlines() if re.search(r"(-m )?rxtone (train|sweep) ", line) and line[0] != "#"]
    words = shlex.split(line)
    name = words[words.index("rxtone") + 1]
    check_command(words[words.index("rxtone") + 2 :], name)


def test_the_ray_job_fits_together():
    job = yaml.safe_load(JOB.read_text("utf-8"))
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[:2] == ["rxtone", "sweep"]
    assert words[2] in shipped_spaces()
    check_command(words[3:], "sweep")
    cluster = job["spec"]["rayClusterSpec"]
    (workers,) = cluster["workerGroupSpecs"]
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    head, worker = (group["template"]["spec"] for group in (cluster["headGroupSpec"], workers))
    assert head["containers"][0]["image"] == worker["containers"][0]["image"]
    (mount,) = head["containers"][0]["volumeMounts"]
    assert mount["name"] == head["volumes"][0]["name"]
    paths = [word.partition("=")[2] for word in words if "=/" in word] + [words[words.index("--out") + 1]]
    assert all(path.startswith(mount["mountPath"] + "/") for path in paths)
    asked = {key: float(words[words.index(f"--{key}s") + 1]) for key in ("cpu", "gpu")}
    limits = worker["containers"][0]["resources"]["limits"]
    assert asked == {"cpu": float(limits["cpu"]), "gpu": float(limits["nvidia.com/gpu"])}
    for spec in (head, worker):
        assert spec["securityContext"]["runAsNonRoot"] is True
