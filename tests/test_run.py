"""Running: exit codes, the run directory, prerequisites, and what the launcher said."""

from __future__ import annotations

import json
import os
import re
import sys
import types
from pathlib import Path

import pytest

from align import launch_env, prerequisites, run_manifest
from align import run as run_module
from align.config import StopRequested, UserError, load_config
from align.config_errors import Failed
from align.demo_pipeline import clock, headline, table
from align.tools import to_words

ROOT = Path(__file__).resolve().parent.parent
LAUNCH = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
    "ACCELERATE_MIXED_PRECISION",
    "ACCELERATE_USE_DEEPSPEED",
    "ACCELERATE_USE_FSDP",
)
YAML = """
policy: {path: null}
data: {text: t.txt, sft: t.txt, preferences: t.txt}
train: {max_steps: 1}
rewards: [{kind: model, path: auto}]
demo: {root: demo}
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in LAUNCH:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "t.txt").write_text("一\n", encoding="utf-8")
    (tmp_path / "c.yaml").write_text(YAML, encoding="utf-8")
    monkeypatch.setattr(run_module, "use_device", lambda config: None)
    return tmp_path


@pytest.fixture
def trainer(monkeypatch):
    """Stand in for every method's training; `trainer.action` decides what it does."""
    module = types.ModuleType("fake_trainer")
    module.seen = []
    module.action = lambda config: {"loss": 1.5}

    def train(config):
        module.seen.append(config)
        return module.action(config)

    module.train = train
    monkeypatch.setitem(sys.modules, "fake_trainer", module)
    for method in run_module.TRAINERS:
        monkeypatch.setitem(run_module.TRAINERS, method, "fake_trainer")
    return module


def go(method, *words):
    return run_module.run(method, ["--config", "c.yaml", *words])


def manifest(path):
    return json.loads((Path(path) / "manifest.json").read_text(encoding="utf-8"))


def test_a_finished_run_leaves_its_directory(place, trainer):
    assert go("dpo", "--train.learning_rate", "1e-5") == 0
    assert trainer.seen[0].train.args["learning_rate"] == 1e-5
    found = manifest("demo/dpo")
    assert found["finished"] is True
    assert found["metrics"].pop("peak_memory_mb") > 1
    found["metrics"].pop("peak_device_memory_mb", None)
    assert found["metrics"] == {"loss": 1.5}
    assert found["world_size"] == 1
    assert found["inputs"]["data.preferences"]["path"] == "t.txt"
    again = load_config("dpo", ["--config", "demo/dpo/config.yaml"])
    assert again.train.args["learning_rate"] == 1e-5
    assert again.train.output_dir == "demo/dpo"


def test_exit_codes(place, trainer, capsys):
    assert go("dpo", "--dpo.beta", "-1") == 2
    assert not Path("demo").exists()
    assert "error: dpo.beta=-1" in capsys.readouterr().err

    def stop(config):
        raise StopRequested("SIGTERM")

    trainer.action = stop
    assert go("dpo") == 75
    assert manifest("demo/dpo")["stopped"] is True

    def fail(config):
        raise ZeroDivisionError("boom")

    trainer.action = fail
    assert go("dpo") == 1
    assert "ZeroDivisionError: boom" in capsys.readouterr().err
    assert manifest("demo/dpo")["error"] == "ZeroDivisionError: boom"
    assert manifest("demo/dpo")["finished"] is False

    def refuse(config):
        raise UserError("data.sft", "x", "is odd", "Fix it")

    trainer.action = refuse
    assert go("dpo") == 2


def test_a_failure_that_says_all_has_no_traceback(capsys):
    def too_bad() -> None:
        raise Failed("perplexity grew from 4 to 9; nothing was written")

    def broken() -> None:
        raise Failed("the disk is full") from OSError("no space left")

    assert run_module.guarded(too_bad) == 1
    assert capsys.readouterr().err == "failed: perplexity grew from 4 to 9; nothing was written\n"
    assert run_module.guarded(broken) == 1
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert "no space left" in said


def test_a_directory_holds_one_method(place, trainer, capsys):
    assert go("dpo") == 0
    assert go("orpo", "--train.output_dir", "demo/dpo") == 2
    assert "holds a run of 'dpo'" in capsys.readouterr().err


def test_resume_never_moves_the_earlier_run_aside(place, trainer):
    assert go("dpo") == 0
    (place / "demo/dpo/checkpoint-1").mkdir()
    (place / "demo/dpo/notes.txt").write_text("mine", encoding="utf-8")
    assert go("dpo", "--train.resume", "never") == 0
    assert (place / "demo/dpo.old-1/checkpoint-1").is_dir()
    assert not (place / "demo/dpo/checkpoint-1").exists()
    assert (place / "demo/dpo/notes.txt").read_text(encoding="utf-8") == "mine"


def test_print_config_and_help_start_nothing(place, trainer, capsys):
    assert go("dpo", "--print_config") == 0
    assert "output_dir: demo/dpo" in capsys.readouterr().out
    assert run_module.run("ppo", ["--help"]) == 0
    assert "--ppo.kl_coef" in capsys.readouterr().out
    assert trainer.seen == []


def test_auto_uses_a_finished_stage_and_builds_a_missing_one(place, trainer, monkeypatch, capsys):
    built = []

    def build(stage, argv):
        built.append(stage)
        assert run_module.run(stage, argv) == 0
        (place / "demo" / stage / "final").mkdir()

    monkeypatch.setattr(prerequisites, "build", build)
    assert go("ppo", "--policy.path", "auto") == 0
    # The reward model's own model is null in the file, so only sft and reward are asked for.
    assert built == ["sft", "reward"]
    assert trainer.seen[-1].policy.path == os.path.join("demo", "sft", "final")
    assert trainer.seen[-1].rewards[0].path == os.path.join("demo", "reward", "final")
    capsys.readouterr()
    assert go("ppo", "--policy.path", "auto", "--train.resume", "never") == 0
    assert built == ["sft", "reward"]
    assert "using demo/sft/final" in capsys.readouterr().out


def test_build_false_refuses_a_missing_stage(place, trainer, capsys):
    assert go("ppo", "--demo.build", "false") == 2
    assert "stage 'reward' (demo/reward) is not finished" in capsys.readouterr().err


def test_other_ranks_wait_for_the_builder(place, trainer, monkeypatch):
    config = load_config("ppo", ["--config", "c.yaml"])
    monkeypatch.setenv("LOCAL_RANK", "1")
    naps = []

    def sleep(seconds):
        naps.append(seconds)
        run_manifest.write_manifest(Path("demo/reward"), {"finished": True})
        Path("demo/reward/final").mkdir(exist_ok=True)

    monkeypatch.setattr(prerequisites.time, "sleep", sleep)
    monkeypatch.setattr(prerequisites, "build", lambda *a: pytest.fail("rank 1 must not build"))
    prerequisites.prepare(config)
    assert len(naps) == 1
    assert config.rewards[0].path == os.path.join("demo", "reward", "final")


def test_a_stage_that_the_file_cannot_build_comes_from_the_demo_file(place):
    (place / "c.yaml").write_text(YAML.replace("sft: t.txt, ", ""), encoding="utf-8")
    config = load_config("dpo", ["--config", "c.yaml", "--policy.path", "auto"])
    assert "demo.yaml" in prerequisites.stage_argv("sft", config)[1]
    assert prerequisites.stage_argv("sft", config)[-1] == "demo"


def test_stage_is_ready_until_settings_or_inputs_change(place, trainer):
    argv = ["--config", "c.yaml"]
    assert not prerequisites.is_ready("dpo", argv)
    assert go("dpo") == 0
    Path("demo/dpo/final").mkdir()
    assert prerequisites.is_ready("dpo", argv)
    assert prerequisites.is_ready("dpo", [*argv, "--train.logging_steps", "7"])
    assert prerequisites.is_ready("dpo", [*argv, "--ppo.lam", "0.5"])  # another method's key
    assert not prerequisites.is_ready("dpo", [*argv, "--dpo.beta", "0.5"])
    assert not prerequisites.is_ready("dpo", [*argv, "--train.learning_rate", "1"])
    (place / "t.txt").write_text("二\n", encoding="utf-8")
    assert not prerequisites.is_ready("dpo", argv)


def test_fingerprint_sees_names_and_contents(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    (tmp_path / "a/x").write_text("1", encoding="utf-8")
    (tmp_path / "b/x").write_text("1", encoding="utf-8")
    (tmp_path / "c/y").write_text("1", encoding="utf-8")
    a, b, c = (run_manifest.fingerprint(tmp_path / n) for n in ("a", "b", "c"))
    assert a == b != c
    (tmp_path / "b/x").write_text("2", encoding="utf-8")
    assert run_manifest.fingerprint(tmp_path / "b") != a
    assert run_manifest.fingerprint("owner/hub-id") is None


def test_a_lost_rank_is_refused(place, trainer, monkeypatch, capsys):
    # What `accelerate launch --cpu --num_processes 2` leaves in the environment of its one process.
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    assert go("dpo") == 2
    assert "was asked for several processes and started one" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    launch_env.refuse_lost_ranks()


def test_a_world_smaller_than_asked_fails(place, trainer, monkeypatch):
    pytest.importorskip("torch")  # the world is counted only once torch has been imported
    monkeypatch.setenv("WORLD_SIZE", "2")
    launch_env.check_world(2)
    with pytest.raises(UserError, match="started 2 processes but the trainer sees 1: every rank"):
        launch_env.check_world(1)
    assert go("dpo") == 2  # the stand-in forms no process group
    assert manifest("demo/dpo")["finished"] is False


def test_children_do_not_inherit_the_launcher(monkeypatch):
    for name in LAUNCH:
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    env = launch_env.single_process_env()
    assert not set(LAUNCH) & set(env)
    assert env["ACCELERATE_USE_CPU"] == "true"
    assert env["HF_HUB_OFFLINE"] == "1"


def test_cpu_is_chosen_except_under_deepspeed(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP"):
        monkeypatch.delenv(name, raising=False)
    file = ["--config", str(ROOT / "recipes/configs/smoke.yaml")]
    config = load_config("dpo", file)
    run_module.use_device(config)
    assert config.train.args["use_cpu"] is True
    assert config.train.args["ddp_backend"] == "gloo"
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    config = load_config("dpo", file)
    run_module.use_device(config)
    assert "use_cpu" not in config.train.args
    assert config.train.args["ddp_backend"] == "gloo"
    monkeypatch.delenv("ACCELERATE_USE_DEEPSPEED")
    config.train.args["fsdp"] = "full_shard"
    with pytest.raises(UserError, match="needs an accelerator"):
        run_module.use_device(config)


def test_demo_table_and_headlines():
    assert clock(125.9) == "2:05"
    assert headline("ppo", {"score/mean": 1.0, "eval_score/mean": 2.0}) == "eval_score/mean 2.000"
    assert headline("sft", {}) == "–"
    lines = table([("sft", "0:10", "eval_loss 2.000"), ("ppo", "reused", "–")]).splitlines()
    assert re.fullmatch(r"sft\s+0:10\s+eval_loss 2\.000", lines[2])


def test_tool_options_become_words():
    assert to_words({"judge": ["a.json", "b.yaml"]}) == ["--judge", "a.json", "--judge", "b.yaml"]
    assert to_words({"runs": ["a", "b"], "output": "o", "overwrite": True, "x": None}) == [
        "a", "b", "--output", "o", "--overwrite",
    ]  # fmt: skip
