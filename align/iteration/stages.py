"""The stages of a round that load models, each in a process of its own: `sample` and `measure`.

What a stage does stands in a JSON file, its plan; the same plan and the same models give the same
files.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from align.config_errors import UserError
from align.config_rollout import RolloutServer
from align.evaluation.sampling import Decoding
from align.files import read_object, write_atomic
from align.iteration.best_of_n import best_of_n, table
from align.iteration.plans import is_function
from align.iteration.select import Rules
from align.jsonl import write_jsonl


def main(argv: Sequence[str] | None = None) -> int:
    """`stages.main(["sample" | "measure", PLAN])`; return the exit code."""
    from align.run import guarded

    stage, plan = list(sys.argv[1:] if argv is None else argv)
    run = {"sample": _sample, "measure": _measure}[stage]
    return guarded(lambda: run(read_object(plan)))


def _model(plan: dict[str, Any], path: str) -> tuple[Any, Any]:
    from align.checkpoints import load_causal_lm
    from align.model_safety import allow

    allow([path], pickle=plan["allow_pickle"], code=plan["trust_remote_code"])
    return load_causal_lm(path, chat_template=plan["chat_template"])


def _sample(plan: dict[str, Any]) -> int:
    """Answers of the current policy, scored, and the training data of the best."""
    with ExitStack() as stack:
        summary = _best(plan, lambda: stack.enter_context(_sampled(plan)))
    print(table(summary), flush=True)
    return 0


@contextmanager
def _sampled(plan: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    """What is sampled from, and its tokenizer: the model, or a server that has it."""
    from align.iteration.hosting import hosted

    loaded = _model(plan, plan["model"])
    if plan.get("server") is None:
        yield loaded
        return
    with hosted(loaded, RolloutServer(**plan["server"]), Path(plan["output"])) as (host, tokenizer):
        del loaded  # the server has a copy of its own
        yield host, tokenizer


def _best(plan: dict[str, Any], load: Callable[[], tuple[Any, Any]]) -> dict[str, Any]:
    from align.data.prompts import load_prompts
    from align.rewards import make_reward

    return best_of_n(
        load,
        load_prompts(plan["prompts"]),
        make_reward(plan["rewards"]),
        plan["n"],
        Path(plan["output"]),
        decoding=Decoding(**plan["decoding"]),
        rules=Rules(**plan["rules"]),
        seed=plan["seed"],
        stop=plan["stop"],
        model=plan["name"],
    )


def _measure(plan: dict[str, Any]) -> int:
    """Reward, judge and KL of one policy on the held-out prompts."""
    from align.data.prompts import load_prompts
    from align.evaluation.compare import sample_rows
    from align.evaluation.compare_measure import measure
    from align.evaluation.metrics import bootstrap
    from align.evaluation.sampling import fitting
    from align.rewards import make_reward

    judge = load_gold(plan["judge"])
    first = _model(plan, plan["first"])
    same = plan["model"] == plan["first"]
    own = first if same else _model(plan, plan["model"])
    decoding = Decoding(**plan["decoding"])
    prompts = load_prompts(plan["prompts"], "eval.prompts")[: plan["num_prompts"]]
    kept, _ = fitting(prompts, [first], decoding.max_new_tokens)
    found = measure(
        plan["name"], Path(plan["model"]), own, first, kept, plan["seeds"], decoding,
        make_reward(plan["rewards"]), [judge],
    )  # fmt: skip
    out = found.outputs
    (scores,) = found.judges.values()
    judged = out.grid(scores)
    if np.isnan(judged).all():
        raise UserError("iterate.judge", plan["judge"], "gave no score at all", "Check the judge")
    result = {
        "reward": bootstrap(out.grid(out.scores)).to_json(),
        "judge": bootstrap(np.nanmean(judged, axis=1)[~np.isnan(judged).all(axis=1)]).to_json(),
        "kl": None if found.kl is None else bootstrap(out.grid(found.kl)).to_json(),
        "length": bootstrap(out.grid(out.lengths)).to_json(),
        "finished": float(np.mean(out.finished)),
        "prompts": len(kept),
        "judged": [[None if np.isnan(x) else float(x) for x in row] for row in judged],
    }
    output = Path(plan["output"])
    write_jsonl(output / "samples.jsonl", sample_rows(found))
    write_atomic(output / "measured.json", json.dumps(result, ensure_ascii=False) + "\n")
    return 0


def load_gold(path: str) -> Any:
    """The judge that a path names, or a Python function, as a judge that scores single texts."""
    from align.evaluation.compare_measure import scores_texts
    from align.evaluation.judges import load_judge

    if is_function(path):
        return _FunctionJudge(path)
    judge = load_judge(path)
    if not scores_texts(judge):
        fix = "Use a reward model, naive Bayes or llm_grade"
        raise UserError("iterate.judge", path, "only compares answers and gives no scores", fix)
    return judge


class _FunctionJudge:
    """A function with the signature of a reward function."""

    def __init__(self, path: str) -> None:
        from align.evaluation.sampling import load_reward

        self._reward, self.name = load_reward(path), "function"

    def score(self, prompts: Any, completions: Any) -> list[float]:
        """The function's numbers; every completion counts as finished."""
        return self._reward([list(p) for p in prompts], list(completions), [True] * len(prompts))
