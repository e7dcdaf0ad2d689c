"""contract.json: what a reward model was trained to read, checked before anyone trusts its scores.

A reward is only comparable with another when the text was rendered by the same template, tokenised
by the same tokenizer and read at the same token. The contract says which; a mismatch is an error
that names the field.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from align.config_errors import UserError
from align.files import fingerprint, write_atomic
from reward_models.outputs import score

FILE = "contract.json"
EOS_RULE = "end_of_turn"
VERSION = 1
TRUNCATIONS = ("keep_start", "keep_end")
LISTS = ("head_means", "attributes", "attribute_weights", "attribute_mean", "attribute_std")


class Attribute(NamedTuple):
    """A rating that an output predicts. weight: in the score. mean, std: of training ratings."""

    name: str
    weight: float
    mean: float
    std: float


@dataclass(frozen=True)
class Contract:
    """One reward model's contract.

    template_hash, tokenizer_hash: of what renders and tokenises. eos_rule: the score is read at the
    completion's end-of-turn token. max_length: tokens of prompt and completion, None unlimited.
    max_prompt_length, truncation: how longer texts were cut, as in ``data.*`` of a training run.
    heads: outputs, averaged; with attributes so many a member of the ensemble. score_mean,
    score_std: of raw scores on reference samples. head_means: the same of each head, for several
    without attributes. attributes, attribute_weights, attribute_mean, attribute_std: what outputs
    predict, their weight in the score, and the training ratings' moments (``outputs``).
    held_out_accuracy: pair accuracy in [0, 1], None when not measured.
    """

    template_hash: str
    tokenizer_hash: str
    eos_rule: str = EOS_RULE
    padding_side: str = "right"
    max_length: int | None = None
    max_prompt_length: int | None = None
    truncation: str = "keep_end"
    heads: int = 1
    score_mean: float = 0.0
    score_std: float = 1.0
    head_means: tuple[float, ...] = ()
    attributes: tuple[str, ...] = ()
    attribute_weights: tuple[float, ...] = ()
    attribute_mean: tuple[float, ...] = ()
    attribute_std: tuple[float, ...] = ()
    data_fingerprint: str | None = None
    held_out_accuracy: float | None = None
    base_fingerprint: str | None = None
    version: int = VERSION


def make_contract(
    tokenizer: Any,
    *,
    max_length: int | None = None,
    max_prompt_length: int | None = None,
    truncation: str = "keep_end",
    heads: int = 1,
    attributes: Sequence[Attribute] = (),
    scores: Sequence[float] = (),
    outputs: Sequence[Sequence[float]] = (),
    data_fingerprint: str | None = None,
    held_out_accuracy: float | None = None,
    base_fingerprint: str | None = None,
) -> Contract:
    """The contract of a model trained with this tokenizer (and its chat template).

    scores: of reference samples; their mean and population standard deviation are kept. outputs:
    the same samples' raw outputs (samples, heads), in place of scores. Raises ValueError for what
    is not finite: such a model has diverged.
    """
    from align.chat import template_hash

    made = Contract(
        template_hash(tokenizer),
        tokenizer_hash(tokenizer),
        max_length=max_length,
        max_prompt_length=max_prompt_length,
        truncation=truncation,
        heads=heads,
        attributes=tuple(a.name for a in attributes),
        attribute_weights=tuple(a.weight for a in attributes),
        attribute_mean=tuple(a.mean for a in attributes),
        attribute_std=tuple(a.std for a in attributes),
        data_fingerprint=data_fingerprint,
        held_out_accuracy=held_out_accuracy,
        base_fingerprint=base_fingerprint,
    )
    if outputs:
        scores = [score(made, row) for row in outputs]
    if not all(math.isfinite(value) for value in scores):
        raise ValueError("the model gives reference scores that are not finite: it has diverged")
    mean, std = moments(scores)
    levels = heads > 1 and not attributes and outputs
    means = tuple(map(fmean, zip(*outputs, strict=True))) if levels else ()
    return replace(made, score_mean=mean, score_std=std, head_means=means)


def moments(scores: Sequence[float]) -> tuple[float, float]:
    """Mean and population standard deviation; (0, 1) without scores, std 1 when all are equal."""
    if not scores:
        return 0.0, 1.0
    mean = math.fsum(scores) / len(scores)
    std = math.sqrt(math.fsum((s - mean) ** 2 for s in scores) / len(scores))
    return mean, std if std > 0.0 else 1.0


def tokenizer_hash(tokenizer: Any) -> str:
    """SHA-256 of what turns text into ids; padding and truncation settings do not matter."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        state = json.loads(backend.to_str())
        state.pop("padding", None)
        state.pop("truncation", None)
    else:
        state = {"vocab": tokenizer.get_vocab(), "class": type(tokenizer).__name__}
    state = {"state": state, "bos": tokenizer.bos_token, "eos": tokenizer.eos_token}
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode("utf-8", "replace")).hexdigest()


def write_contract(path: str | Path, contract: Contract) -> None:
    """Writes contract.json into a checkpoint folder, whole or not at all."""
    write_atomic(Path(path) / FILE, json.dumps(asdict(contract), indent=2, allow_nan=False) + "\n")


def read_contract(path: str | Path) -> Contract | None:
    """The contract of a checkpoint folder; None without one, UserError where it is damaged."""
    file = Path(path) / FILE
    if not file.is_file():
        return None
    try:
        values = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            "contract", str(file), f"cannot be read: {error}", "Save the model again"
        ) from None
    known = {f.name for f in fields(Contract)}
    if not isinstance(values, dict) or not {"template_hash", "tokenizer_hash"} <= values.keys():
        raise UserError(
            "contract",
            str(file),
            "lacks template_hash or tokenizer_hash",
            "Save the model again with this version",
        )
    unknown = sorted(values.keys() - known)
    if unknown or values.get("version", VERSION) != VERSION:
        said = f"has unknown fields {unknown}" if unknown else f"has version {values['version']!r}"
        raise UserError(
            "contract", str(file), said, "It was written by another version of the code: update"
        )
    for name in LISTS:
        if isinstance(values.get(name), list):
            values[name] = tuple(values[name])
    wrong = [name for name, value in values.items() if not _valid(name, value)]
    wrong += _unequal(values) if not wrong else []
    if wrong:
        raise UserError(
            f"contract.{wrong[0]}",
            values[wrong[0]],
            f"of {file} cannot be used",
            "Save the model again",
        )
    return Contract(**values)


def _valid(name: str, value: Any) -> bool:
    """Whether a field's value has the type and range that scoring relies on."""
    number = _is_number(value)
    whole = number and isinstance(value, int)
    if name in ("score_mean", "score_std", "held_out_accuracy"):
        return (number and (name != "score_std" or value > 0)) or (
            value is None and name == "held_out_accuracy"
        )
    if name == "heads":
        return whole and value >= 1
    if name in ("max_length", "max_prompt_length"):
        return value is None or (whole and value >= 1)
    if name == "truncation":
        return value in TRUNCATIONS
    if name in LISTS:
        return isinstance(value, tuple) and all(_valid_item(name, item) for item in value)
    if name == "version":
        return True  # checked before
    return isinstance(value, str) or (value is None and name.endswith("fingerprint"))


def _valid_item(name: str, item: Any) -> bool:
    if name == "attributes":
        return isinstance(item, str) and bool(item)
    return _is_number(item) and (name != "attribute_std" or item > 0)


def _is_number(value: Any) -> bool:
    whole_or_real = isinstance(value, (int, float)) and not isinstance(value, bool)
    return whole_or_real and math.isfinite(value)


def _unequal(values: dict[str, Any]) -> list[str]:
    """Lists that do not fit the number of attributes or heads."""
    n, heads = len(values.get("attributes", ())), values.get("heads", 1)
    wrong = [x for x in LISTS[2:] if len(values.get(x, ())) != n]
    if len(values.get("head_means", ())) not in (0, heads):
        wrong.append("head_means")
    return [*wrong, "heads"] if n and heads % n else wrong


def check_contract(
    contract: Contract,
    tokenizer: Any,
    *,
    path: str = "",
    heads: int | None = None,
    max_length: int | None = None,
) -> None:
    """Refuses a tokenizer, template, head count or length that the model was not trained with.

    Raises UserError naming the field.
    """
    from align.chat import template_hash

    found: dict[str, Any] = {
        "template_hash": template_hash(tokenizer),
        "tokenizer_hash": tokenizer_hash(tokenizer),
        "eos_rule": EOS_RULE,
        "padding_side": "right",
        "heads": contract.heads if heads is None else heads,
    }
    for name, value in found.items():
        said = getattr(contract, name)
        if said != value:
            raise UserError(
                f"contract.{name}",
                said,
                f"does not match {value!r} of {path or 'the model'}",
                "Use the tokenizer and template that the model was trained with",
            )
    if (
        max_length is not None
        and contract.max_length is not None
        and max_length > contract.max_length
    ):
        raise UserError(
            "max_length",
            max_length,
            f"is over the contract's {contract.max_length}",
            "The model never read longer text: use at most that",
        )


def check_base(contract: Contract, base: str, *, path: str = "") -> None:
    """Refuses a base model that the adapter was not trained on: another one, or changed since.

    base: its folder; a hub id has no fingerprint and passes. Raises UserError naming the field.
    """
    found, said = fingerprint(base), contract.base_fingerprint
    if said is not None and found is not None and found != said:
        raise UserError(
            "contract.base_fingerprint",
            said,
            f"does not match {found} of {base}, the base model of {path or 'the adapter'}",
            "Use the base that the adapter was trained on, or the merged model above it",
        )
