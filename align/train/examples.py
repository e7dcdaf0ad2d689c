"""From records to token groups: rendering, length limits, held-out split, counts by reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar

from align import chat
from align.config_errors import UserError
from align.data.fit import FittedGroup, fit_group
from align.data.pairs import load_preferences
from align.data.sft import load_sft
from align.data.splits import split_by_key
from align.groups import TokenGroup
from align.jsonl import Counts, RecordError
from align.records import Example, PreferenceGroup, prompt_key, short
from align.train import token_cache
from align.train.reward_inputs import RewardInputs, check_attributes
from reward_models.preferences import targets

if TYPE_CHECKING:
    from align.config import Config

T = TypeVar("T")
Built = tuple[TokenGroup, list[str]] | str  # (group, what was cut) or why there is none


def split(
    records: Sequence[T], keys: Sequence[str], config: Config, held_out: Sequence[T] | None
) -> tuple[list[T], list[T]]:
    """(training, held-out) records: the validation file's, or a share of the prompts."""
    if held_out is not None:
        return list(records), list(held_out)
    share = config.data.validation_fraction
    if not share:
        return list(records), []
    seed = config.train.args.get("seed", 42)
    parts = split_by_key(keys, {"train": 1 - share, "validation": share}, seed)
    chosen = [[records[i] for i in parts[name]] for name in ("train", "validation")]
    if not chosen[0]:
        raise UserError(
            "data.validation_fraction", share, "leaves no record to train on", "Lower it"
        )
    return chosen[0], chosen[1]


def sft_groups(
    config: Config, tokenizer: Any
) -> tuple[Sequence[TokenGroup], Sequence[TokenGroup], list]:
    """(training groups, held-out groups, counts) of data.sft."""
    assert config.data.sft is not None
    records, counts = load_sft(config.data.sft)
    found = [counts]
    held_out = None
    if config.data.validation and config.method == "sft":
        held_out, more = load_sft(config.data.validation, "data.validation")
        found.append(more)
    keys = [prompt_key(_before_answer(e)) for e in records]
    train, held = split(records, keys, config, held_out)
    build = SftBuilder(tokenizer, config)
    return (
        build_all(build, train, counts, config),
        build_all(build, held, found[-1], config, allow_empty=True),
        found,
    )


def preference_groups(
    config: Config, tokenizer: Any, *, keep_end_token: bool = False
) -> tuple[Sequence[TokenGroup], Sequence[TokenGroup], list]:
    """(training groups, held-out groups, counts) of data.preferences.

    keep_end_token: a completion that is cut keeps its last token, where a reward model reads.
    """
    assert config.data.preferences is not None
    records, counts = load_preferences(config.data.preferences)
    if keep_end_token:
        check_attributes(records, config)
    found = [counts]
    held_out = None
    if config.data.validation:
        held_out, more = load_preferences(config.data.validation, "data.validation")
        found.append(more)
    train, held = split(records, [prompt_key(g.prompt) for g in records], config, held_out)
    build = PairBuilder(tokenizer, config, keep_end_token)
    return (
        build_all(build, train, counts, config),
        build_all(build, held, found[-1], config, allow_empty=True),
        found,
    )


def build_all(
    build: SftBuilder | PairBuilder,
    records: Sequence[Any],
    counts: Counts,
    config: Config,
    allow_empty: bool = False,
) -> Sequence[TokenGroup]:
    """Build every record, in data.num_proc processes; what cannot be built is counted.

    Many records are built once and kept on disk (`align.train.token_cache`). Raises UserError when
    nothing is left.
    """
    groups: Sequence[TokenGroup]
    root = token_cache.folder(config) if len(records) > token_cache.SMALL else None
    if root is not None:
        settings = build.depends_on | {"data": _limits(build.data)}
        groups, dropped, cuts = token_cache.cached(
            lambda: _built(build, records, config), records, root, build.tokenizer, settings
        )
    else:
        results = _built(build, records, config)
        dropped = [r for r in results if isinstance(r, str)]
        kept = [r for r in results if not isinstance(r, str)]
        groups, cuts = [group for group, _ in kept], [kind for _, kinds in kept for kind in kinds]
    counts.used -= len(dropped)
    for reason in dropped:
        counts.drop(reason)
    for kind in cuts:
        counts.truncate(kind)
    if not groups and not allow_empty:
        reasons = ", ".join(f"{k} {n}" for k, n in counts.dropped.most_common())
        raise UserError(
            f"data.{'sft' if config.method == 'sft' else 'preferences'}", counts.file,
            f"leaves nothing to train on: {reasons}", "Raise data.max_length",
        )  # fmt: skip
    return groups


def _built(build: Callable[[Any], Built], records: Sequence[Any], config: Config) -> list[Built]:
    workers = config.data.num_proc or 1
    if workers > 1 and len(records) > token_cache.SMALL:
        with ProcessPoolExecutor(workers) as pool:
            return list(pool.map(build, records, chunksize=256))
    return [build(record) for record in records]


def _limits(data: Any) -> list[Any]:
    return [data.max_length, data.max_prompt_length, data.truncation]


class SftBuilder:
    """An Example as a group of one completion, everything after the first learned token."""

    def __init__(self, tokenizer: Any, config: Config) -> None:
        self.tokenizer, self.data, self.loss_on = tokenizer, config.data, config.sft.loss_on
        self.depends_on = {"builder": "sft", "loss_on": self.loss_on}

    def __call__(self, example: Example) -> Built:
        """Render and cut one example."""
        try:
            ids, mask = chat.render_conversation(self.tokenizer, example.messages, self.loss_on)
        except RecordError as error:
            return error.code
        # The first token has no predecessor to predict it.
        start = max(mask.index(1), 1) if 1 in mask else len(ids)
        if not any(mask[start:]):
            raise UserError(
                "data.sft", short(example.messages), "has no token to learn from once rendered",
                "Check data.chat_template and sft.loss_on",
            )  # fmt: skip
        fitted = _fit(self.tokenizer, self.data, ids[:start], [ids[start:]], [mask[start:]])
        if isinstance(fitted, str):
            return fitted
        group = TokenGroup(fitted.prompt_ids, fitted.completions, fitted.masks)
        return group, kinds_cut(fitted)


class PairBuilder:
    """A PreferenceGroup as a group of the candidates that somebody compared.

    keep_end_token: for a reward model, whose ratings and bootstrap counts then become extras.
    """

    def __init__(self, tokenizer: Any, config: Config, keep_end_token: bool = False) -> None:
        self.tokenizer, self.data, self.settings = tokenizer, config.data, config.reward
        self.keep_end_token = keep_end_token
        self.inputs = RewardInputs(config) if keep_end_token else None
        seed = config.train.args.get("seed", 42)
        self.depends_on = {"builder": "pairs", "reward": asdict(config.reward), "seed": seed}
        self.depends_on["keep_end_token"] = keep_end_token

    def __call__(self, group: PreferenceGroup) -> Built:
        """Render and cut one group."""
        settings, inputs = self.settings, self.inputs
        pairs = targets(group, aggregate=settings.aggregate, margin=settings.margin)
        rated: dict[int, list[float | None]] = {}
        try:
            if inputs is not None and inputs.attributes:
                rated = inputs.ratings(group)
                if not rated and not settings.pair_coef:
                    return "no_attribute"
            used = sorted({i for pair in pairs for i in (pair.a, pair.b)} | rated.keys())
            if not used:
                return "no_pair"
            rendered = [
                chat.render_completion(self.tokenizer, group.prompt, group.candidates[i].content)
                for i in used
            ]
        except RecordError as error:
            return error.code
        fitted = _fit(
            self.tokenizer,
            self.data,
            rendered[0][0],
            [completion for _, completion, _ in rendered],
            [mask for _, _, mask in rendered],
        )
        if isinstance(fitted, str):
            return fitted
        completions = fitted.completions
        if self.keep_end_token:
            whole = [completion for _, completion, _ in rendered]
            completions = [
                [*cut[:-1], full[-1]] for cut, full in zip(completions, whole, strict=True)
            ]
        if len(used) > 1 and all(c == completions[0] for c in completions[1:]):
            return "identical_after_cut"
        place = {old: new for new, old in enumerate(used)}
        moved = [type(p)(place[p.a], place[p.b], p.target, p.weight, p.margin) for p in pairs]
        extras = inputs.extras(group.group_id, used, rated) if inputs is not None else {}
        made = TokenGroup(fitted.prompt_ids, completions, fitted.masks, pairs=moved, extras=extras)
        return made, kinds_cut(fitted)


def _fit(
    tokenizer: Any, data: Any, prompt: list[int], completions: list[list[int]], masks: Any
) -> FittedGroup | str:
    """`fit_group` within the limits of the data section."""
    return fit_group(
        prompt,
        completions,
        masks,
        max_length=data.max_length,
        max_prompt_length=data.max_prompt_length,
        truncation=data.truncation,
        header_len=chat.header_len(tokenizer),
    )


def kinds_cut(fitted: FittedGroup) -> list[str]:
    """What of a row was cut to length, as counted in data_counts.json."""
    kinds = {
        "prompt_truncated": fitted.prompt_truncated,
        "completion_truncated": fitted.completion_truncated > 0,
    }
    return [kind for kind, cut in kinds.items() if cut]


def _before_answer(example: Example) -> Any:
    ends = [i for i, m in enumerate(example.messages) if m.role == "assistant"]
    return example.messages[: ends[-1]] if ends else example.messages
