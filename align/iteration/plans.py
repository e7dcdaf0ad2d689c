"""What each stage of a round is to do, and the checks before the first; no torch."""

from __future__ import annotations

import copy
import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from align.config import Config, load_config
from align.config_checks import check_rules, on_cpu
from align.config_engine import check_engine
from align.config_errors import UserError
from align.config_files import check_files, check_function
from align.config_own_data import follow_own_data
from align.files import fingerprint
from align.records import messages_json

# method: the file of a round's data, which is also the key of `data` that it is given as
DATA = {"dpo": "preferences", "orpo": "preferences", "sft": "sft"}


def as_ppo(config: Config) -> Config:
    """A copy that reads policy, prompts, rewards and held-out prompts as PPO does."""
    sampling = copy.deepcopy(dataclasses.replace(config, method="ppo"))
    follow_own_data(sampling)
    if sampling.ppo.critic_path == "auto":
        sampling.ppo.critic_path = None  # there is no critic
    return sampling


def check(config: Config, words: Sequence[str]) -> None:
    """Raise UserError for whatever could stop a later round, before anything is loaded."""
    settings = config.iterate
    sampling = as_ppo(config)
    sampling.ppo.num_minibatches = 1  # of a recipe that is not run
    sampling.rollout = dataclasses.replace(config.rollout, engine="hf")  # PPO asks more of others
    check_rules(sampling)
    check_engine(config, cpu=on_cpu(config), train=False)
    check_files(sampling)
    if sampling.policy.path is None:
        fix = "Give a model folder, or auto for the demo's"
        raise UserError("policy.path", None, "is needed: nothing would be sampled", fix)
    if config.policy.lora is not None and config.policy.lora.path:
        reason = "cannot be used here: every round has an adapter of its own"
        fix = "Merge it (recipes/export_model.py) and give that as policy.path"
        raise UserError("policy.lora.path", config.policy.lora.path, reason, fix)
    if config.rollout.server.url is not None and config.rollout.engine != "hf":
        reason = "has one model, and every round samples another"
        fix = "Use null: each round starts a server of its own"
        raise UserError("rollout.server.url", config.rollout.server.url, reason, fix)
    if sampling.eval.prompts is None:
        reason = "is needed: the judge must see prompts that no round is trained on"
        raise UserError("eval.prompts", None, reason, "Give a file of held-out prompts")
    _check_judge(config)
    # A wrong key of the training method is said now, not after an hour of sampling.
    load_config(settings.method, [*words, *_overrides(config, "auto", "auto")])


def _check_judge(config: Config) -> None:
    from align.evaluation.judges import check_judge

    path = judge_of(config)
    if path is None:
        reason = "is needed: the reward alone rises even where answers get worse"
        fix = "Give a reward model of other data, naive Bayes .json, judge.yaml or module:function"
        raise UserError("iterate.judge", None, reason, fix)
    if is_function(path):
        check_function("iterate.judge", path)
        return
    try:
        check_judge(path)
    except UserError as error:
        error.field = f"iterate.{error.field}" if error.field == "judge" else error.field
        raise


def is_function(path: str) -> bool:
    """Whether a judge is `module:function` or `file.py:function`."""
    known = ("naive_bayes:", "llm:", "llm_grade:")
    return ":" in path and not Path(path).exists() and not path.startswith(known)


def judge_of(config: Config) -> str | None:
    """iterate.judge, else eval.judge."""
    return config.iterate.judge or config.eval.judge


def model_folder(path: str) -> Path:
    """The folder of a model; UserError for a hub id, whose copy a run could not keep."""
    from align.checkpoints import find_model

    return find_model(path, "policy.path")


def round_prompts(config: Config, sampling: Config, number: int) -> list[dict[str, Any]]:
    """The prompts of a round: all, or the next prompts_per_round of a shuffled row that repeats."""
    from align.data.prompts import load_prompts

    prompts = load_prompts(str(sampling.prompts_path))
    count = config.iterate.prompts_per_round or len(prompts)
    if count < len(prompts):
        order = list(range(len(prompts)))
        random.Random(seed_of(config)).shuffle(order)
        start = (number - 1) * count
        prompts = [prompts[order[i % len(order)]] for i in range(start, start + count)]
    return [{**p.meta, "prompt": messages_json(p.messages)} for p in prompts]


def seed_of(config: Config) -> int:
    """The run's seed."""
    return int(config.train.args.get("seed", 42))


def sample_plan(
    config: Config, sampling: Config, policy: str, number: int, prompts: Path, output: Path
) -> dict[str, Any]:
    """What the sampling stage of a round does."""
    settings = config.iterate
    return {
        **_shared(sampling), "model": policy, "name": f"round-{number - 1}",
        "prompts": str(prompts), "n": settings.n, "output": str(output),
        "decoding": _decoding(sampling, config.rollout.temperature), "stop": config.rollout.stop,
        "seed": seed_of(config) + 1_000_000_007 * number,
        **({} if config.rollout.engine == "hf" else {
            "server": dataclasses.asdict(config.rollout.server)}),
        "rules": {"pairs": settings.pairs, "min_margin": settings.min_margin,
                  "min_score": settings.min_score, "unfinished": settings.unfinished},
    }  # fmt: skip


def measure_plan(
    config: Config, sampling: Config, policy: str, first: Path, output: Path
) -> dict[str, Any]:
    """What the measuring stage of a round does: the same prompts, seeds and decoding in all."""
    return {
        **_shared(sampling), "model": policy, "first": str(first), "name": output.parent.name,
        "prompts": sampling.eval.prompts, "num_prompts": config.eval.num_samples,
        "seeds": config.eval.seeds if config.eval.temperature else config.eval.seeds[:1],
        "decoding": _decoding(sampling, config.eval.temperature), "judge": judge_of(config),
        "output": str(output),
    }  # fmt: skip


def _shared(sampling: Config) -> dict[str, Any]:
    return {
        "rewards": [dataclasses.asdict(r) for r in sampling.rewards],
        "chat_template": None if sampling.data.chat_template == "auto" else (
            sampling.data.chat_template
        ),
        "allow_pickle": sampling.policy.allow_pickle,
        "trust_remote_code": sampling.policy.trust_remote_code,
    }  # fmt: skip


def _decoding(sampling: Config, temperature: float) -> dict[str, Any]:
    r = sampling.rollout
    return {
        "max_new_tokens": r.max_new_tokens, "min_new_tokens": r.min_new_tokens,
        "temperature": temperature, "top_p": r.top_p, "top_k": r.top_k, "batch_size": r.batch_size,
    }  # fmt: skip


def fingerprints(plan: dict[str, Any]) -> dict[str, str | None]:
    """Of everything on disk that a plan names, so that a changed file is seen."""
    names = [plan[k] for k in ("model", "first", "prompts", "judge") if plan.get(k)]
    names += [r["path"] for r in plan["rewards"] if r["kind"] == "model"]
    files = [r["path"].rpartition(":")[0] for r in plan["rewards"] if r["kind"] == "function"]
    return {name: fingerprint(name) for name in [*names, *files] if name}


def starts_over(config: Config) -> bool:
    """Whether every round trains the first policy anew, on the pairs of all rounds so far."""
    return config.iterate.method == "dpo" and config.iterate.reference == "first"


def train_argv(
    config: Config, words: Sequence[str], policy: str, data: Path, output: Path
) -> list[str]:
    """The command line of a round's training, after the method's name.

    policy: where the weights start, which is also DPO's reference.
    """
    return [
        *words, *_overrides(config, policy, str(data)),
        "--train.output_dir", str(output), "--train.resume", "auto",
    ]  # fmt: skip


def _overrides(config: Config, policy: str, data: str) -> list[str]:
    key = DATA[config.iterate.method]
    return [
        "--policy.path", policy, f"--data.{key}", data, "--data.validation", "null",
        "--data.validation_fraction", "0", "--train.eval_strategy", "no",
    ]  # fmt: skip


def describe(config: Config, words: Sequence[str]) -> str:
    """What would be run, for --dry_run."""
    sampling, settings = as_ppo(config), config.iterate
    output = Path(config.train.output_dir)
    count = settings.prompts_per_round or "all"
    stop = settings.stop
    argv = train_argv(config, words, "POLICY", Path("DATA"), output / "round-1/train")
    lines = [
        f"first policy   {sampling.policy.path}",
        f"prompts        {sampling.prompts_path}, {count} a round",
        f"held out       {sampling.eval.prompts}, {config.eval.num_samples} at most",
        "rewards        " + ", ".join(f"{r.weight:g} × {r.path}" for r in sampling.rewards),
        f"gold judge     {judge_of(config)}",
        f"rounds         {settings.rounds} at most; patience {stop.patience}, "
        f"min_delta {stop.min_delta:g}",
        f"a round        {settings.n} answers a prompt, {settings.pairs}, then "
        f"{settings.method} against the {settings.reference} policy"
        if settings.method == "dpo"
        else f"a round        {settings.n} answers a prompt, then {settings.method}",
        f"training       {settings.method} {' '.join(argv)}",
        f"output         {output}",
        "Nothing was trained or written.",
    ]
    return "\n".join(lines)
