"""The tokenizer stage: text in, a run directory with `final/` and a report out."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align import launch_env
from align.config_errors import UserError
from align.config_tokenizer import SENTENCEPIECE

if TYPE_CHECKING:
    from align.config import Config

# Paragraphs that the figures are taken on, and those whose tokens the report shows.
MEASURED, SHOWN = 20_000, 4
# Without held-out text the figures are those of the text learned from.
_OWN_MEASURED = 2000
OWN = "this"


def train(config: Config) -> dict[str, float]:
    """Learn or extend the vocabulary on rank 0 and return how well it fits the text.

    `final/` appears whole or not at all.
    """
    if launch_env.rank() != 0:
        return {}
    from align.data.tokenizer import save_tokenizer
    from align.files import whole_folder

    run_dir, used = Path(config.train.output_dir), Counting()
    with whole_folder(run_dir / "final") as target:
        if config.tokenizer.extend is None:
            learned = _learn(config, used)
            save_tokenizer(learned, target)
            before = {}
        else:
            before = _extend(config, used, target)
        metrics = _measure(config, target, run_dir, before)
    _write_counts(config, run_dir, used.number)
    return metrics


class Counting:
    """The texts of data.text, and how many were read."""

    number = 0

    def texts(self, config: Config) -> Iterator[str]:
        """Yield them once."""
        for path in config.texts:
            for text in _paragraphs(path, "data.text"):
                self.number += 1
                yield text
        if not self.number:
            files = ", ".join(config.texts)
            raise UserError("data.text", files, "holds no text", "Give a file with text")


def _paragraphs(path: str, field: str, split: str = "train") -> Iterator[str]:
    """The paragraphs of a file; UserError for one that is no Unicode text."""
    from align.fresh import paragraphs

    for number, text in enumerate(paragraphs(path, field, split), start=1):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            reason = f"has half a surrogate pair in text {number}, character {error.start + 1}"
            raise UserError(field, path, reason, "Remove or correct it") from None
        yield text


def _say(text: str) -> None:
    from align.prerequisites import say

    say(f"tokenizer: {text}")


def _seed(config: Config) -> int:
    return int(config.train.args.get("seed", 42))


def _learn(config: Config, used: Counting) -> Any:
    from align.data.tokenizer import learn_tokenizer

    return learn_tokenizer(
        used.texts(config),
        config.tokenizer,
        seed=_seed(config),
        model_max_length=config.data.max_length,
        chat_template=config.data.chat_template or "chatml",
        say=_say,
    )


def _extend(config: Config, used: Counting, target: Path) -> dict[str, Any]:
    """Write the extended tokenizer, and model where the base has one; return {base: tokenizer}."""
    import torch

    from align.data.tokenizer_extend import extend_folder

    if not torch.accelerator.is_available():  # deepspeed else warns when a model is loaded
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    base = extend_folder(
        used.texts(config),
        config.tokenizer,
        target,
        seed=_seed(config),
        chat_template=config.data.chat_template,
        say=_say,
    )
    return {f"base {config.tokenizer.extend}": base}


def _measure(
    config: Config, folder: Path, run_dir: Path, before: dict[str, Any]
) -> dict[str, float]:
    """Write the figures of the tokenizer as it was saved, and of those it is compared with."""
    from align.checkpoints import read_tokenizer
    from align.data.tokenizer_statistics import compare
    from align.files import write_atomic

    settings = config.tokenizer
    tokenizers = {OWN: read_tokenizer(folder), **before}
    tokenizers |= {path: read_tokenizer(path) for path in settings.compare_with}
    unknowns = settings.kind in SENTENCEPIECE and not settings.byte_fallback
    exact = [] if settings.extend or unknowns else [OWN]
    sums = compare(tokenizers, _texts(config), exact)
    rates = {
        name: {language: fit.rates(len(tokenizers[name])) for language, fit in fits.items()}
        for name, fits in sums.items()
    }
    counts = {name: len(t) for name, t in tokenizers.items()}
    report = {
        "measured_on": f"{sums[OWN]['all'].texts:,} paragraphs of {_measured(config)}",
        "held_out": bool(config.data.validation),
        "texts": {language: fit.texts for language, fit in sums[OWN].items()},
        "vocabulary": counts,
        "changed": {name: fits["all"].changed for name, fits in sums.items()},
        "rates": rates,
        "samples": _samples(config, tokenizers),
    }
    text = json.dumps(report, ensure_ascii=False) + "\n"
    write_atomic(run_dir / "tokenizer_report.json", text)
    metrics = rates[OWN]["all"] | {"vocab_size": float(counts[OWN])}
    languages = [language for language in rates[OWN] if language != "all"]
    metrics |= {f"fertility/{name}": rates[OWN][name]["fertility"] for name in languages}
    for name in before:
        metrics["base_fertility"] = rates[name]["all"]["fertility"]
    write_atomic(run_dir / "metrics.jsonl", json.dumps({"step": 1, **metrics}) + "\n")
    return metrics


def _measured(config: Config) -> str:
    """The file that the figures are taken on: held-out text where there is some."""
    return config.data.validation or ", ".join(config.texts)


def _texts(config: Config) -> Iterator[str]:
    """The first paragraphs of that file."""
    if config.data.validation:
        texts = _paragraphs(config.data.validation, "data.validation", "validation")
        return itertools.islice(texts, MEASURED)
    own = (_paragraphs(path, "data.text") for path in config.texts)
    return itertools.islice(itertools.chain.from_iterable(own), _OWN_MEASURED)


def _samples(config: Config, tokenizers: dict[str, Any]) -> list[dict[str, Any]]:
    """The tokens of the first few paragraphs of each language under each tokenizer."""
    from align.data.tokenizer_statistics import language_of, shown_tokens

    shown: dict[str, list[str]] = {}
    for text in _texts(config):
        some = shown.setdefault(language_of(text), [])
        if len(some) < SHOWN:
            some.append(text)
    return [
        {"language": name, "tokens": {n: shown_tokens(t, text) for n, t in tokenizers.items()}}
        for name, texts in sorted(shown.items())
        for text in texts
    ]


def _write_counts(config: Config, run_dir: Path, used: int) -> None:
    from align.files import write_atomic

    counts = [{"file": ", ".join(config.texts), "used": used, "dropped": {}, "truncated": 0}]
    write_atomic(run_dir / "data_counts.json", json.dumps(counts, ensure_ascii=False) + "\n")
