"""The reward protocol, and the weighted sum of several rewards.

Text crosses this boundary and nothing else: a reward model has its own tokenizer and template, a
function needs no model at all, and neither sees the policy's token ids.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from align.config_checks import check_calibrated
from align.config_errors import UserError, nearest
from align.records import Message
from align.rewards.limit import limited

KINDS = ("model", "function", "http")


class RewardError(RuntimeError):
    """A reward gave something that is no list of finite numbers; names the reward and the item."""


class Reward(Protocol):
    """Scores completions of conversations."""

    @property
    def name(self) -> str:
        """Short name for logs."""
        ...

    def __call__(
        self, prompts: list[list[Message]], completions: list[str], finished: list[bool]
    ) -> list[float]:
        """Return one finite number per completion, higher is better.

        prompts: B conversations that end with the turn to be answered. completions: B texts without
        special tokens. finished: B, whether the policy ended the completion itself.
        """
        ...


@dataclass(frozen=True)
class Scores:
    """total: B weighted sums. components: each term's B numbers before weighting, by its name."""

    total: list[float]
    components: dict[str, list[float]]


class WeightedSum:
    """Σ weight·reward over several rewards; itself a reward.

    limits: seconds for a term's scores, see `align.rewards.limit`; None: as long as it takes.
    """

    name = "total"

    def __init__(
        self,
        rewards: Sequence[Reward],
        weights: Sequence[float],
        limits: Sequence[float | None] | None = None,
    ) -> None:
        if not rewards or len(rewards) != len(weights):
            raise ValueError(f"{len(rewards)} rewards with {len(weights)} weights")
        self.rewards, self.weights = list(rewards), [float(w) for w in weights]
        self.limits = list(limits or [None] * len(self.rewards))
        self.names = _unique([r.name for r in rewards])

    def score(
        self, prompts: list[list[Message]], completions: list[str], finished: list[bool]
    ) -> Scores:
        """Return the total and every component. Raises RewardError naming the term at fault.

        All terms are asked first: other ranks may be waiting in a later one.
        """
        if not len(prompts) == len(completions) == len(finished):
            raise ValueError(
                f"{len(prompts)} prompts, {len(completions)} completions, {len(finished)} flags"
            )
        components: dict[str, list[float]] = {}
        wrong: list[RewardError] = []
        for name, reward, limit in zip(self.names, self.rewards, self.limits, strict=True):
            if not completions and not getattr(reward, "in_parts", False):
                components[name] = []
                continue
            call = partial(reward, prompts, completions, finished)
            try:
                components[name] = checked(name, _called(name, call, limit), completions)
            except RewardError as error:
                wrong.append(error)
        if wrong:
            raise wrong[0]
        total = [
            sum((w * x for w, x in zip(self.weights, row, strict=True)), 0.0)
            for row in zip(*components.values(), strict=True)
        ]
        return Scores(total, components)

    def __call__(
        self, prompts: list[list[Message]], completions: list[str], finished: list[bool]
    ) -> list[float]:
        """Return the totals alone."""
        return self.score(prompts, completions, finished).total


def _called(name: str, call: Callable[[], Any], limit: float | None) -> Any:
    """What a reward returns; RewardError naming it if it raises or takes longer than the limit."""
    try:
        if limit is None:
            return call()
        late = f"reward {name!r} gave no scores in {limit:g} s (rewards[].timeout_s)"
        return limited(call, limit, RewardError(late))
    except (RewardError, UserError):
        raise
    except Exception as error:
        raise RewardError(f"reward {name!r} failed: {type(error).__name__}: {error}") from error


def checked(name: str, values: Any, completions: Sequence[str]) -> list[float]:
    """Return values as floats, one per completion; raise RewardError where they are not.

    values: whatever a reward returned: a list, tuple, array or one-dimensional tensor of numbers.
    """
    try:
        if isinstance(values, str | bytes | Mapping | Set):  # iterable, but no list of numbers
            raise TypeError
        items = list(values)
    except TypeError:  # also what tensors and arrays without a dimension raise
        raise RewardError(
            f"reward {name!r} returned {_short(values)} ({type(values).__name__}); "
            "it must return a list with one number per completion"
        ) from None
    if len(items) != len(completions):
        raise RewardError(
            f"reward {name!r} returned {len(items)} numbers for {len(completions)} completions"
        )
    result = []
    for i, item in enumerate(items):
        try:
            if isinstance(item, str | bytes):  # float() would read "1.5"
                raise TypeError
            value = float(item)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            raise RewardError(
                f"reward {name!r} returned {_short(item)} for completion {i} "
                f"({_short(completions[i])}); it must be a number"
            ) from None
        if not math.isfinite(value):
            raise RewardError(
                f"reward {name!r} returned {value} for completion {i} ({_short(completions[i])}); "
                "it must be finite"
            )
        result.append(value)
    return result


def make_reward(
    sources: Sequence[Any], device: Any = None, *, in_parts: bool = False, policy: Any = None
) -> WeightedSum:
    """Build the rewards of a configuration.

    sources: the `rewards` list; each item has kind (model | function | http), path, weight,
    calibrated and timeout_s, as attributes or keys. device: where reward models run.
    calibrated: a model's scores in standard deviations of its reference samples; of a
    server, that it says the same of its own.
    in_parts, policy: reward models are read sharded, and adapters of the policy's base put on it,
    for the policy's engine to run (`ModelReward.join`).
    Raises UserError for an unknown kind, an empty list, a weight that is no finite number, a model
    or function that cannot be loaded, or a server that does not answer.
    """
    if not sources:
        raise UserError("rewards", [], "is empty: nothing to optimise", "Add a reward")
    rewards: list[Reward] = []
    weights: list[float] = []
    limits: list[float | None] = []
    for i, source in enumerate(sources):
        get = source.get if isinstance(source, Mapping) else lambda k, d, s=source: getattr(s, k, d)
        kind, path, weight = get("kind", "model"), get("path", None), get("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise UserError(f"rewards.{i}.weight", weight, "is not a number", "Use e.g. 1.0")
        if not math.isfinite(weight):
            raise UserError(f"rewards.{i}.weight", weight, "must be finite", "Use e.g. 1.0")
        calibrated = bool(get("calibrated", False))
        rewards.append(_make_one(kind, path, device, calibrated, i, in_parts, policy))
        weights.append(float(weight))
        # A server has patience of its own, with retries.
        limits.append(None if kind == "http" else get("timeout_s", None))
    return WeightedSum(rewards, weights, limits)


def _make_one(
    kind: str,
    path: str | None,
    device: Any,
    calibrated: bool,
    index: int,
    in_parts: bool,
    policy: Any,
) -> Reward:
    """One reward of the configuration; index: its place there."""
    field = f"rewards.{index}"
    if kind not in KINDS:
        guess = nearest(str(kind), KINDS)
        fix = "Kinds are model, function and http" + (f"; did you mean {guess!r}?" if guess else "")
        raise UserError(f"{field}.kind", kind, "is not a kind of reward", fix)
    if not path:
        fix = "Give a checkpoint, a function or a URL"
        raise UserError(f"{field}.path", path, "is missing", fix)
    if calibrated:
        check_calibrated(f"{field}.calibrated", kind)
    if kind == "function":
        from align.rewards.function import FunctionReward

        return FunctionReward(path, field=f"{field}.path")
    if kind == "http":
        from align.rewards.http import HttpReward

        return HttpReward(path, field=f"{field}.path", index=index, calibrated=calibrated)
    from align.rewards.model import ModelReward

    return ModelReward(
        path, device, calibrated=calibrated, field=f"{field}.path", in_parts=in_parts,
        policy=policy,
    )  # fmt: skip


def _unique(names: Sequence[str]) -> list[str]:
    """Names with #2, #3 … appended to repeated ones."""
    result: list[str] = []
    for name in names:
        numbered = (name, *(f"{name}#{k}" for k in range(2, len(names) + 1)))
        result.append(next(n for n in numbered if n not in result))
    return result


def _short(value: Any, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
