"""The multi-machine launch, with two network namespaces as machines of one process each."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "train"))
import small_runs as runs
from launching import ROOT, config_file, environment, need, words

pytestmark = pytest.mark.distributed
ADDRESSES = ("10.213.57.1", "10.213.57.2")
PORT = "29731"
SIZE = ("--train.per_device_train_batch_size", 2, *runs.CONSTANT)
ACCELERATE = ["--config_file", "ds_configs/accelerate_cpu2.yaml", "--num_machines", "2",
              "--main_process_ip", ADDRESSES[0], "--main_process_port", PORT]  # fmt: skip
TORCHRUN = ["--nnodes", "2", "--nproc_per_node", "1", "--rdzv_backend", "c10d", "--rdzv_id", "a",
            "--rdzv_endpoint", f"{ADDRESSES[0]}:{PORT}"]  # fmt: skip


def ip(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def machines() -> Iterator[list[str]]:
    """Names of two network namespaces that see each other and nothing else."""
    if not sys.platform.startswith("linux") or shutil.which("ip") is None:
        pytest.skip("network namespaces: Linux with iproute2")
    names = [f"align{os.getpid()}{side}" for side in "ab"]
    made = ip("netns", "add", names[0])
    if made.returncode:
        pytest.skip(f"network namespaces need CAP_NET_ADMIN: {made.stderr.strip()}")
    try:
        steps = [
            ["netns", "add", names[1]],
            ["-n", names[0], "link", "add", "veth0", "type", "veth", "peer", "name", "veth0",
             "netns", names[1]],
        ]  # fmt: skip
        for name, address in zip(names, ADDRESSES, strict=True):
            steps += [
                ["-n", name, "addr", "add", f"{address}/24", "dev", "veth0"],
                ["-n", name, "link", "set", "veth0", "up"],
                ["-n", name, "link", "set", "lo", "up"],
            ]
        for step in steps:
            done = ip(*step)
            if done.returncode:
                pytest.skip(f"ip {' '.join(step)}: {done.stderr.strip()}")
        yield names
    finally:
        for name in names:
            ip("netns", "del", name)


def start(name: str, command: list[str]) -> subprocess.Popen[str]:
    """A launcher on one machine."""
    env = environment() | {"GLOO_SOCKET_IFNAME": "veth0"}
    if "deepspeed_multinode" not in " ".join(command):  # torchrun has no file that says it
        env["ACCELERATE_USE_CPU"] = "true"
    return subprocess.Popen(
        ["ip", "netns", "exec", name, *command], cwd=ROOT, env=env, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def together(machines: list[str], commands: list[list[str]]) -> list[str]:
    """What the launchers said, both ended well."""
    started = [start(name, command) for name, command in zip(machines, commands, strict=True)]
    try:
        said = [process.communicate(timeout=400)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    codes = [process.returncode for process in started]
    assert codes == [0, 0], "\n".join(text[-3000:] for text in said)
    return said


def accelerate(argv: list[str], machine: int) -> list[str]:
    return words("recipes/sft.py", argv, [*ACCELERATE, "--machine_rank", str(machine)])


def zero2(argv: list[str], machine: int) -> list[str]:
    file = ["--config_file", "ds_configs/accelerate_zero2.yaml", *ACCELERATE[2:]]
    place = ["--machine_rank", str(machine), "--deepspeed_multinode_launcher", "standard"]
    return words("recipes/sft.py", argv, [*file, *place])


def torchrun(argv: list[str], machine: int) -> list[str]:
    # A namespace's host name does not lead to its address: say who holds the rendezvous.
    place = ["--local_addr", ADDRESSES[machine], "--rdzv_conf", f"is_host={int(machine == 0)}"]
    run = [sys.executable, "-m", "torch.distributed.run", *TORCHRUN, *place]
    return [*run, "recipes/sft.py", *argv]


@pytest.mark.parametrize("launcher", [accelerate, torchrun, zero2])
def test_two_machines_train_as_two_processes_of_one(machines, tmp_path, launcher):
    need(launcher.__name__)
    argv = runs.arguments(tmp_path / "far", *SIZE)
    said = together(machines, [launcher(argv, machine) for machine in range(2)])
    assert runs.manifest(tmp_path / "far")["world_size"] == 2
    # Rank 0 alone writes and prints, and it is on the first machine.
    assert ["sft 4/4" in text for text in said] == [True, False]
    mode = "zero2" if launcher is zero2 else "cpu2"
    near = words("recipes/sft.py", runs.arguments(tmp_path / "near", *SIZE), config_file(mode))
    done = subprocess.run(near, cwd=ROOT, env=environment(), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = runs.weights(tmp_path / "far"), runs.weights(tmp_path / "near")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert runs.figures(tmp_path / "far") == runs.figures(tmp_path / "near")
