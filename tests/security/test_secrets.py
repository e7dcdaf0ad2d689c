"""Tokens and passwords: refused in a configuration, unseen in what a run writes and says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from align.config import load_config
from align.config_errors import UserError, is_secret
from align.run import run

ROOT = Path(__file__).resolve().parents[2]
SMOKE = ["--config", str(ROOT / "recipes/configs/smoke.yaml")]
VALUE = "s3cr3t-Value-一"


@pytest.mark.parametrize(
    "words",
    [
        ["--train.hub_token", VALUE],
        [f"--train.hub_token={VALUE}"],
        ["--train.push_to_hub_token", VALUE],
        ["--train.wandb_api_key", VALUE],
        ["--hub_token", VALUE],
        ["--rewards.0.token", VALUE],
        ["--tools.generate.api_key", VALUE],
        ["--per_method.sft.train.hub_token", VALUE],
        ["--train.accelerator_config", "{comet: {api_key: " + VALUE + "}}"],
        ["--train.hub_token", f"[{VALUE}"],  # no YAML
        ["--rewards", f"[{{kind: http, path: 'https://me:{VALUE}@host'}}]"],
        ["--rewards.0.path", f"https://host:8001/score?token={VALUE}"],
        ["--rewards.0.path", f"https://host:8001/score?a=1&API_KEY={VALUE}"],
        ["--data.sft", f"https://host/data.jsonl?access_token={VALUE}"],
    ],
)
def test_a_secret_on_the_command_line_is_refused_and_not_repeated(words, tmp_path, capsys, fault):
    fault("a token or password in the configuration", "refused; its value is shown nowhere")
    out = tmp_path / "run"
    assert run("ppo", [*SMOKE, "--train.output_dir", str(out), *words]) == 2
    said = capsys.readouterr()
    assert VALUE not in said.out + said.err
    assert "error: " in said.err
    assert not out.exists()


def test_a_secret_in_the_file_is_refused(tmp_path, capsys):
    file = tmp_path / "my.yaml"
    text = f"policy: {{path: null}}\nper_method: {{dpo: {{train: {{hub_token: {VALUE}}}}}}}\n"
    file.write_text(text, "utf-8")
    assert run("sft", ["--config", str(file)]) == 2
    said = capsys.readouterr().err
    assert "per_method.dpo.train.hub_token is a secret" in said
    assert "HF_TOKEN" in said
    assert VALUE not in said


def test_names_that_only_sound_like_secrets_are_taken(tmp_path):
    for name in ("max_tokens", "train.max_tokens_per_batch", "pretrain.shard_tokens", "eos_token",
                 "pretrain.sample_tokens", "rollout.max_new_tokens", "tokenizer"):  # fmt: skip
        assert not is_secret(name)
    words = ["--train.max_tokens_per_batch", "64", "--train.output_dir", str(tmp_path / "run")]
    assert load_config("sft", [*SMOKE, *words]).train.max_tokens_per_batch == 64


def test_errors_about_a_secret_hide_its_value():
    assert str(UserError("server.token", VALUE, "is wrong", "Set it")) == (
        "server.token is wrong. Set it."
    )


def test_a_run_writes_none_of_the_secrets_of_its_environment(tmp_path):
    """The places where they belong: the environment. Then nothing of the run may hold them."""
    out = tmp_path / "run"
    secrets = {
        name: f"{VALUE}-{name.lower()}"
        for name in (
            "HF_TOKEN",
            "WANDB_API_KEY",
            "COMET_API_KEY",
            "ALIGN_REWARD_TOKEN",
            "AWS_SECRET_ACCESS_KEY",
        )
    }
    env = os.environ | secrets | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    words = ["--train.output_dir", str(out), "--train.max_steps", "2"]
    words += ["--train.report_to", "tensorboard"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "recipes/sft.py"), *SMOKE, *words],
        capture_output=True, env=env, cwd=tmp_path, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    files = [path for path in out.rglob("*") if path.is_file()]
    assert {"config.yaml", "manifest.json", "metrics.jsonl", "report.html"} <= {
        path.name for path in files
    }
    assert any("tfevents" in path.name for path in files)
    where = {str(path): path.read_bytes() for path in files}
    where |= {"stdout": done.stdout, "stderr": done.stderr}
    held = [name for name, text in where.items() if VALUE.encode() in text]
    assert held == []
