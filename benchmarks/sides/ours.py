"""align's side: the same call that its recipes make."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from align import launch_env

launch_env.set_defaults()

import stopwatch  # noqa: E402

DATA = {"sft": "sft", "ppo": "prompts"}


def options(job: dict) -> list[str]:
    """The command line of the recipe."""
    given = {
        "policy.path": job["model"],
        "policy.dtype": job["dtype"],
        "policy.reference": job.get("reference", "auto"),
        f"data.{DATA.get(job['method'], 'preferences')}": job["data"],
        "data.max_length": job["max_length"],
        "data.shuffle": "false",
        "train.output_dir": job["output"],
        "train.resume": "never",
        "train.max_steps": job["steps"],
        "train.per_device_train_batch_size": job["batch"],
        "train.learning_rate": job["learning_rate"],
        "train.lr_scheduler_type": "constant",
        "train.logging_steps": 1,
        "train.save_strategy": "no",
        "train.seed": 1,
        "train.report_to": "none",
    }
    if job["lora"]:
        given["policy.lora"] = "{r: 16, alpha: 32, path: " + job["model"] + "/adapter}"
    if job["method"] == "ppo":
        given |= {
            "rollout.prompts_per_update": job["prompts"],
            "rollout.max_new_tokens": job["new_tokens"],
            "ppo.ppo_epochs": job["epochs"],
            "ppo.num_minibatches": 1,
        }
    given |= job.get("options", {})
    words = ["--config", job["config"]]
    for name, value in given.items():
        words += [f"--{name}", str(value)]
    return words


def main() -> int:
    job = stopwatch.job()
    watch = stopwatch.watch()
    from align.run import run

    code = run(job["method"], options(job))
    if code == 0:
        stopwatch.report(job["out"], watch, steps_a_unit=job.get("steps_a_unit", 1))
    return code


if __name__ == "__main__":
    sys.exit(main())
