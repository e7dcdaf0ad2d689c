"""What a training configuration says about suites, checked before torch is imported."""

from __future__ import annotations

from typing import TYPE_CHECKING

from align.config_errors import NO_VALUE, UserError, nearest
from align.evaluation.suites import Suite, load_suite

if TYPE_CHECKING:
    from align.config import Config

METHODS = ("pretrain", "sft", "dpo", "orpo", "ppo")
"""Those whose model writes text. Others leave `eval.suite` unread, as every unused section."""
PREFIX = "suite/"
_FIELD = "train.metric_for_best_model"


def training_suite(config: Config) -> Suite | None:
    """The suite of `eval.suite`; None where there is none. UserError if its file is wrong."""
    if config.eval.suite is None or config.method not in METHODS:
        return None
    return load_suite(config.eval.suite, "eval.suite")


def check_suite(config: Config) -> None:
    """Raise UserError for a wrong suite file, or a best metric that the suite does not give."""
    suite = training_suite(config)
    if suite is not None and config.train.args.get("eval_strategy", "no") == "no":
        reason = "is never run: there are no evaluations"
        raise UserError("eval.suite", config.eval.suite, reason, "Set train.eval_steps, or null")
    name = _best(config)
    if name is None:
        return
    value = config.train.args["metric_for_best_model"]
    if suite is None:
        raise UserError(_FIELD, value, "needs a suite", "Set eval.suite")
    known = _figures(config, suite)
    if name not in known:
        close = nearest(name, known)
        hint = f"Did you mean '{PREFIX}{close}'? " if close else ""
        listed = ", ".join(PREFIX + figure for figure in known)
        raise UserError(_FIELD, value, "is no figure of the suite", f"{hint}It has: {listed}")
    if known[name] is None and "greater_is_better" not in config.train.args:
        reason = f"is needed: whether more is better is not known of {value}"
        raise UserError("train.greater_is_better", NO_VALUE, reason, "Set true or false")


def best_direction(config: Config) -> bool | None:
    """Whether more is better, of the suite's figure that the best checkpoint is chosen by."""
    if (name := _best(config)) is None:
        return None
    suite = training_suite(config)
    return None if suite is None else _figures(config, suite).get(name)


def _best(config: Config) -> str | None:
    """`task/metric` of train.metric_for_best_model; None where it is not a suite's."""
    value = config.train.args.get("metric_for_best_model")
    name = value.removeprefix("eval_") if isinstance(value, str) else ""
    return name.removeprefix(PREFIX) if name.startswith(PREFIX) else None


def _figures(config: Config, suite: Suite) -> dict[str, bool | None]:
    return suite.figures(reward=config.method == "ppo", judge=config.eval.judge is not None)
