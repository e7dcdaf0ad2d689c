"""What evaluations measure beside a method's own figures: a suite, and a judge of samples.

The suite's code is that of `recipes/evaluate_policy.py`, so a figure here is the figure there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from align.distributed import in_parts, without_zero3
from align.evaluation.suite_config import PREFIX, training_suite
from align.evaluation.suites import Suite
from align.whole import whole_lm

if TYPE_CHECKING:
    from align.config import Config
    from align.train.base import AlignTrainer


@dataclass
class Measures:
    """`eval.suite` and `eval.judge`, loaded; None where the configuration has none."""

    suite: Suite | None = None
    judge: Any = None

    @classmethod
    def of(cls, config: Config, device: Any = None) -> Measures:
        """Those of a configuration; UserError if a file is wrong."""
        suite, judge = training_suite(config), None
        if config.eval.judge is not None and (suite is not None or config.method == "ppo"):
            from align.evaluation.judges import load_judge

            with without_zero3():
                judge = load_judge(config.eval.judge, device)
        return cls(suite, judge)


def suite_figures(trainer: AlignTrainer) -> dict[str, float]:
    """{"suite/<task>/<figure>": value} of the policy as it is now, on every rank; {} without one.

    Ranks share the rows, each with the whole policy. PPO's reward is the suite's `reward`, unless
    its weights are in parts, which needs all ranks at once.
    """
    suite = trainer.measures.suite
    if suite is None:
        return {}
    from align.evaluation.suite_run import Subject, run_suite

    settings, policy = trainer.settings, trainer.policy
    collector = getattr(trainer, "collector", None)
    reward = collector.reward if collector is not None and not in_parts() else None
    chunk = settings.rollout.gather_chunk_mb
    with whole_lm(policy.module.lm, trainer.args.device, chunk) as lm:
        subject = Subject(
            lm, policy.tokenizer, reward, trainer.measures.judge, settings.rollout.batch_size
        )
        # The wrapper's forward casts (bf16), and what samples goes around it.
        with trainer.accelerator.autocast():
            result = run_suite(suite, subject, intervals=False)
    return {f"{PREFIX}{name}": value for name, value in result.figures.items()}
