"""A policy in EleutherAI's lm-evaluation-harness, through its public API (extra `lm-eval`)."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from align.config_errors import UserError, nearest


@dataclass(frozen=True)
class HarnessTasks:
    """Tasks of lm-eval. folder: further YAML tasks. limit: first items of each; None: all."""

    names: tuple[str, ...]
    folder: str | None = None
    limit: int | None = None


def check_harness(names: str, folder: str | None, limit: int | None) -> HarnessTasks:
    """The options of the command line; UserError without the package or for a missing folder."""
    if find_spec("lm_eval") is None:
        reason, fix = "needs lm-eval, which is not installed", "pip install 'align[lm-eval]'"
        raise UserError("--lm_eval", names, reason, fix)
    if folder is not None and not Path(folder).is_dir():
        raise UserError("--lm_eval_tasks", folder, "is no folder", "Give one with task YAML files")
    if limit is not None and limit < 1:
        raise UserError("--lm_eval_limit", limit, "is below 1", "Use 1 or more")
    chosen = tuple(name.strip() for name in names.split(",") if name.strip())
    if not chosen:
        raise UserError("--lm_eval", names, "names no task", "Write TASK,TASK")
    return HarnessTasks(chosen, folder, limit)


def find_tasks(harness: HarnessTasks) -> Any:
    """lm-eval's task manager, which must know every task; UserError with the nearest name else."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=harness.folder)
    for name in harness.names:
        if not manager.match_tasks([name]):
            close = nearest(name, manager.all_tasks)
            fix = f"Did you mean '{close}'?" if close else "lm-eval ls tasks lists them"
            raise UserError("--lm_eval", name, "is no task that lm-eval knows", fix)
    return manager


def run_harness(
    model: Any, tokenizer: Any, harness: HarnessTasks, batch_size: int
) -> dict[str, Any]:
    """{"tasks": {task: {metric: value}}, …} of a loaded model.

    Prompts go through the tokenizer's chat template where it has one, examples as turns of their
    own. A metric's filter is named after a comma unless it is `none`; `…_stderr` is lm-eval's.
    """
    import logging
    from importlib.metadata import version

    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    # It warns that the model is not given by name, which is the point.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = find_tasks(harness)
    chat = bool(getattr(tokenizer, "chat_template", None))
    # Their types are hidden behind lazy imports.
    wrap: Any = HFLM
    run: Any = simple_evaluate
    lm = wrap(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    found = run(
        model=lm, tasks=list(harness.names), task_manager=manager, limit=harness.limit,
        apply_chat_template=chat, fewshot_as_multiturn=chat, log_samples=False,
        bootstrap_iters=1000,
    )  # fmt: skip
    counts = found.get("n-samples", {})
    return {
        "lm_eval": version("lm_eval"),
        "chat_template": chat,
        "limit": harness.limit,
        "tasks": {
            task: {**_plain(figures), "n": counts.get(task, {}).get("effective")}
            for task, figures in found["results"].items()
        },
    }


def on_rank_zero(*given: Any) -> dict[str, Any]:
    """`run_harness` on rank 0; the other processes wait for what it found."""
    from align.distributed import from_rank_zero

    return from_rank_zero(lambda: run_harness(*given))


def _plain(figures: dict[str, Any]) -> dict[str, float]:
    """Numbers by name; `acc,none` is acc."""
    return {
        name.removesuffix(",none"): float(value)
        for name, value in figures.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and "," in name
    }
