"""The scripts of recipes/launch/, with stand-ins for what a cluster has."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "train"))
import small_runs as runs
from launching import ROOT, environment

LAUNCH = ROOT / "recipes" / "launch"
# Tasks of a step, one a node, as srun starts them; a signal to srun goes on to every task.
SRUN = """#!/usr/bin/env bash
[ "$1" = --kill-on-bad-exit=0 ] && shift
for node in $(seq 0 $((SLURM_NNODES - 1))); do SLURM_NODEID=$node "$@" & tasks+=($!); done
trap 'kill -TERM "${tasks[@]}"; asked=1' TERM
code=0
for task in "${tasks[@]}"; do
  wait "$task"; one=$?
  while kill -0 "$task" 2>/dev/null; do wait "$task"; one=$?; done
  ((one > code)) && code=$one
done
exit $code
"""
SCONTROL = """#!/usr/bin/env bash
if [ "$1" = show ]; then echo localhost; echo elsewhere; else echo "$*" >> "$SCONTROL_LOG"; fi
"""


@pytest.mark.parametrize("script", sorted(LAUNCH.glob("*.sh")), ids=lambda path: path.name)
def test_a_script_parses_and_may_be_run(script):
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert script.stat().st_mode & stat.S_IXUSR


def test_the_kubernetes_job_says_what_the_launcher_needs():
    service, job = yaml.safe_load((LAUNCH / "k8s.yaml").read_text("utf-8"))["items"]
    spec = job["spec"]
    assert (service["kind"], service["spec"]["clusterIP"], job["kind"]) == (
        "Service", "None", "Job",
    )  # fmt: skip
    assert spec["completionMode"] == "Indexed"
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    env = {entry["name"]: entry["value"] for entry in container["env"]}
    assert int(env["MACHINES"]) == spec["completions"] == spec["parallelism"]
    assert int(env["GPUS"]) == container["resources"]["limits"]["nvidia.com/gpu"]
    # Pods of an indexed Job are called NAME-INDEX; the service gives them a domain.
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert f"{job['metadata']['name']}-0.{pod['subdomain']}" in (LAUNCH / "k8s_pod.sh").read_text()
    actions = {
        code: rule["action"]
        for rule in spec["podFailurePolicy"]["rules"]
        for code in rule.get("onExitCodes", {}).get("values", [])
    }
    assert actions == {75: "Ignore", 2: "FailJob"}
    assert pod["restartPolicy"] == "Never"  # Kubernetes takes a podFailurePolicy with no other
    assert (ROOT / container["command"][1]).is_file()


def cluster(folder: Path, **more: str) -> dict[str, str]:
    """The environment of a job on two nodes with a process each."""
    tools = folder / "bin"
    tools.mkdir(exist_ok=True)
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    env = environment()
    env["PATH"] = f"{tools}{os.pathsep}{env['PATH']}"
    job = {"SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "1", "SLURM_JOB_NODELIST": "n[1-2]",
           "SLURM_JOB_ID": str(os.getpid()), "SCONTROL_LOG": str(folder / "scontrol.log"),
           "ACCELERATE_CONFIG": "ds_configs/accelerate_cpu2.yaml"}  # fmt: skip
    return env | job | more


def submitted(folder: Path, script: str, *extra: object, **more: str) -> subprocess.Popen[str]:
    words = runs.arguments(folder / "run", *extra, *runs.CONSTANT)
    return subprocess.Popen(
        ["bash", str(LAUNCH / script), "recipes/sft.py", *words], cwd=ROOT, text=True,
        env=cluster(folder, **more), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def at_step(run_dir: Path, step: int, job: subprocess.Popen[str]) -> None:
    """Wait until a run has logged a step."""
    end = time.monotonic() + 240
    while time.monotonic() < end and job.poll() is None:
        if (run_dir / "metrics.jsonl").is_file() and len(runs.lines(run_dir)) >= step:
            return
        time.sleep(0.1)
    raise AssertionError(job.communicate(timeout=30)[0][-3000:])


@pytest.mark.distributed
def test_a_job_trains_over_its_nodes_and_is_requeued_when_stopped(tmp_path, fault):
    fault("SLURM ends or pre-empts a job", "a checkpoint, requeued, goes on by itself")
    long = ("--train.max_steps", 4000, "--train.resume", "auto", "--train.save_steps", 4000,
            "--train.eval_strategy", "no")  # fmt: skip
    job = submitted(tmp_path, "slurm.sh", *long)
    at_step(tmp_path / "run", 3, job)
    job.send_signal(signal.SIGUSR1)  # what --signal=B:USR1@120 sends
    said = job.communicate(timeout=120)[0]
    assert job.returncode == 75, said[-3000:]
    assert (tmp_path / "scontrol.log").read_text() == f"requeue {os.getpid()}\n"
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-*")
    step = int(checkpoint.name.partition("-")[2])
    # The queue starts the same command again.
    more = ("--train.max_steps", step + 2, *long[2:])
    job = submitted(tmp_path, "slurm.sh", *more)
    said = job.communicate(timeout=300)[0]
    assert job.returncode == 0, said[-3000:]
    assert runs.manifest(tmp_path / "run")["world_size"] == 2
    assert [r["step"] for r in runs.lines(tmp_path / "run") if "loss" in r][-2:] == [
        step + 1, step + 2,
    ]  # fmt: skip


@pytest.mark.distributed
def test_a_failed_job_is_not_requeued(tmp_path):
    job = submitted(tmp_path, "slurm.sh", "--train.max_stepz", 3)
    assert job.wait(timeout=120) not in (0, 75)
    assert not (tmp_path / "scontrol.log").exists()


@pytest.mark.distributed
def test_a_pods_exit_code_says_what_happened(tmp_path):
    pod = {"MACHINES": "1", "GPUS": "2", "JOB_COMPLETION_INDEX": "0", "MAIN_ADDRESS": "localhost"}
    job = submitted(tmp_path, "k8s_pod.sh", "--train.max_stepz", 3, **pod)
    assert job.wait(timeout=120) == 2
    long = ("--train.max_steps", 4000, "--train.save_steps", 4000, "--train.eval_strategy", "no")
    job = submitted(tmp_path, "k8s_pod.sh", *long, **pod)
    at_step(tmp_path / "run", 2, job)
    job.terminate()
    said = job.communicate(timeout=120)[0]
    assert job.returncode == 75, said[-3000:]
    assert len(list((tmp_path / "run").glob("checkpoint-*"))) == 1
