"""A judge from a path, a judge.yaml or `llm:MODEL@URL`; checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from align.config_errors import NO_VALUE, UserError, is_secret, missing_file, nearest
from align.config_yaml import load_yaml
from align.evaluation.judges.naive_bayes import NaiveBayesJudge
from align.evaluation.judges.reward import RewardJudge
from align.evaluation.judges.votes import VotesJudge

_ENDPOINT = {
    "api_key_env": str, "cache": str, "timeout_s": float, "retries": int, "concurrency": int,
    "max_tokens": int, "temperature": float, "price_in": float, "price_out": float, "body": dict,
}  # fmt: skip
_LLM = {"url": str, "model": str, "template": str, "language": str, **_ENDPOINT}
# kind: its keys with their types; the first ones without which it is nothing
KEYS: dict[str, tuple[dict[str, type], tuple[str, ...]]] = {
    "llm": (_LLM, ("url", "model")),
    "llm_grade": (_LLM, ("url", "model")),
    "reward_model": ({"path": str, "batch_size": int}, ("path",)),
    "naive_bayes": ({"path": str}, ("path",)),
    "votes": ({"path": str}, ("path",)),
}
_PLACES = {"llm": ("prompt", "a", "b"), "llm_grade": ("prompt", "answer")}
_HOW = ("give a naive Bayes .json, a reward-model folder, a judge.yaml, votes as .jsonl, or "
        "llm:MODEL@http://host/v1")  # fmt: skip


@dataclass(frozen=True)
class JudgeSpec:
    """A judge that has been checked and not loaded. name: as its figures will be called."""

    name: str | None
    make: Callable[[Any], Any]

    def load(self, device: Any = None) -> Any:
        """The judge; a reward model is read now."""
        return self.make(device)


def load_judge(path: str | Path, device: Any = None, *, scores: bool = False) -> Any:
    """The judge that a path names.

    A saved naive Bayes file (.json), a reward-model folder, a judge.yaml, preference groups with
    votes (.jsonl), or `llm:MODEL@URL`. path may carry the prefix `naive_bayes:`. UserError for
    anything else, and with scores for a judge that only compares.
    """
    judge = check_judge(path).load(device)
    if scores and not hasattr(judge, "score"):
        fix = "Use llm_grade for llm, or compare_runs"
        raise UserError("judge", str(path), "compares two answers and scores none alone", fix)
    return judge


def check_judge(path: str | Path) -> JudgeSpec:
    """Check what names a judge, without loading a model. UserError as in `load_judge`."""
    text = str(path).removeprefix("naive_bayes:")
    if text.startswith(("llm:", "llm_grade:")):
        kind, _, rest = text.partition(":")
        model, at, url = rest.rpartition("@")
        if not at:
            fix = f"write {kind}:MODEL@http://host:port/v1"
            raise UserError("judge", text, "names no server", fix)
        return _of(kind, {"model": model, "url": url}, "judge")
    file = Path(text)
    if file.is_dir():
        return _of("reward_model", {"path": text}, "judge")
    if not file.is_file():
        raise UserError("judge", text, "no such file or folder", f"check the path; {_HOW}")
    if file.suffix in (".yaml", ".yml"):
        return _from_yaml(file)
    kind = "votes" if text.endswith((".jsonl", ".jsonl.gz")) else "naive_bayes"
    return _of(kind, {"path": text}, "judge")


def _from_yaml(file: Path) -> JudgeSpec:
    try:
        given = load_yaml(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = f"cannot be read ({' '.join(str(error).split())})"
        raise UserError("judge", str(file), reason, "write `kind: llm` and its keys") from error
    if not isinstance(given, dict):
        raise UserError("judge", str(file), "is not a mapping", "write `kind: llm` and its keys")
    options = dict(given)
    kind = options.pop("kind", None)
    if kind not in KEYS:
        close = nearest(str(kind), KEYS) if kind is not None else None
        fix = f"Did you mean {close}?" if close else f"Use one of {', '.join(KEYS)}"
        raise UserError(f"{file}: kind", kind, "is not a kind of judge", fix)
    name = options.pop("name", None)
    if name is not None and (not isinstance(name, str) or not name):
        raise UserError(f"{file}: name", name, "is not a name", "write text")
    return _of(kind, options, str(file), name)


def _of(
    kind: str, options: Mapping[str, Any], where: str, name: str | None = None
) -> JudgeSpec:  # fmt: skip
    """Check the options of a kind; what they name must be there."""
    options = _checked(kind, options, where)
    if kind in ("llm", "llm_grade"):
        return _llm(kind, options, where, name)
    path = options["path"]
    if kind == "reward_model":
        from align.checkpoints import find_model

        folder, size = find_model(path, "judge"), options.get("batch_size", 16)
        if size < 1:
            raise UserError(f"{where}: batch_size", size, "is below 1", "Use 1 or more")
        return JudgeSpec(
            name, lambda device: RewardJudge(folder, device=device, batch_size=size, name=name)
        )
    if not Path(path).is_file():
        raise missing_file("judge", path)
    judge: Any = VotesJudge.load(path, name) if kind == "votes" else NaiveBayesJudge.load(path)
    judge.name = name or judge.name
    return JudgeSpec(judge.name, lambda device: judge)


def _checked(kind: str, options: Mapping[str, Any], where: str) -> dict[str, Any]:
    known, needed = KEYS[kind]
    for key, value in options.items():
        if key not in known:
            close = nearest(str(key), known)
            fix = f"Did you mean {close}?" if close else f"Its keys are {', '.join(known)}"
            shown = NO_VALUE if is_secret(str(key)) else value
            raise UserError(f"{where}: {key}", shown, f"is not a key of a {kind} judge", fix)
        wanted = known[key]
        fits = isinstance(value, (int, float) if wanted is float else wanted)
        if not fits or isinstance(value, bool):
            raise UserError(f"{where}: {key}", value, f"is not {_KIND[wanted]}")
    for key in needed:
        if not options.get(key):
            raise UserError(f"{where}: {key}", NO_VALUE, f"is missing: a {kind} judge needs it")
    return dict(options)


_KIND = {str: "text", int: "a whole number", float: "a number", dict: "a mapping"}


def _llm(kind: str, options: dict[str, Any], where: str, name: str | None) -> JudgeSpec:
    from align.evaluation.endpoint import Endpoint
    from align.evaluation.judges.llm import LLMGrader, LLMJudge
    from align.evaluation.judges.wording import read_template

    language = options.pop("language", "auto")
    if language not in ("auto", "zh", "en"):
        raise UserError(f"{where}: language", language, "is not auto, zh or en")
    template = options.pop("template", None)
    if template is not None:
        template = read_template(template, _PLACES[kind], f"{where}: template")
    url, model = options.pop("url"), options.pop("model")
    endpoint = Endpoint(url, model, field=where, **options)
    made = LLMJudge if kind == "llm" else LLMGrader
    judge = made(endpoint, template=template, language=language, name=name)
    return JudgeSpec(judge.name, lambda device: judge)
