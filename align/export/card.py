"""The model card: README.md with the hub's front matter, from what the run folder says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from align.export import card_facts as facts
from align.files import read_object, write_atomic
from align.report.charts import number

NAMES = {
    "pretrain": "pre-training", "sft": "supervised fine-tuning", "reward": "reward modelling",
    "dpo": "direct preference optimisation", "orpo": "odds-ratio preference optimisation",
    "ppo": "PPO against a reward",
}  # fmt: skip
CONTRACT = ("template_hash", "tokenizer_hash", "eos_rule", "max_length", "truncation", "heads",
            "score_mean", "score_std", "held_out_accuracy")  # fmt: skip


def write_card(
    folder: Path,
    *,
    source: Path,
    run: Path | None,
    report: dict[str, Any],
    license: str | None = None,
    language: Sequence[str] | None = None,
    base: str | None = None,
    datasets: Sequence[str] | None = None,
    checkpoint: str | None = None,
    library: str = "transformers",
    extra: Sequence[str] = (),
) -> None:
    """Write README.md into an exported folder.

    source: the model that was exported. run: its run directory, None for a bare model folder.
    report: of the export; its notes get one on the licence where that is not known. license: SPDX
    id or any name, default: what the base model's card says. language: codes, default: those of the
    run's prompts. base: hub id of the base. datasets: hub ids. checkpoint: its name, where not the
    run's end was exported. extra: lines of "How to serve" in place of the usual.
    """
    runs = facts.lineage(run)
    hub_base, said_base = facts.base_of(runs, source)
    if base is not None:
        local = Path(base).exists()
        hub_base = None if local else base
        said_base = f"a local folder named {Path(base).name}" if local else base
    given = license or facts.base_license(runs, source)
    identifier, name = facts.license_of(given) if given else ("unknown", None)
    if not given:
        report["notes"].append("licence unknown: no --license, and no card of a base states one")
    elif name is not None:
        report["notes"].append(f"the hub has no licence {name!r}: written as other, with that name")
    language = list(language) if language else _languages(run)
    head = _front_matter(
        base_model=hub_base, license=identifier, license_name=name, language=language,
        tags=["align", *(m["method"] for _, m in runs)], library_name=library,
        datasets=list(datasets or ()),
    )  # fmt: skip
    title = runs[0][0].resolve().name if runs else source.resolve().name
    parts = [f"# {title}", _summary(runs, said_base, report, given, name, license)]
    if checkpoint:
        parts.append(f"Exported from {checkpoint}; closing figures are those of the run's end.")
    for path, manifest in runs:
        parts.append(_stage(path, manifest))
    parts += [_chat(folder, report), _serving(extra), _unmeasured(run, runs, report)]
    body = "\n\n".join(part for part in parts if part)
    write_atomic(folder / "README.md", f"---\n{head}\n---\n\n{body}\n")


def _front_matter(**values: Any) -> str:
    """The YAML block, as huggingface_hub writes it."""
    from huggingface_hub import ModelCardData

    given = {k: v for k, v in values.items() if v}
    return ModelCardData(pipeline_tag="text-generation", **given).to_yaml()


def _summary(
    runs: list, said_base: str, report: dict[str, Any], given: str | None, name: str | None,
    asked: str | None,
) -> str:  # fmt: skip
    stages = " after ".join(NAMES.get(str(m["method"]), str(m["method"])) for _, m in runs)
    size = f"{report['parameters']:,} parameters, {report['dtype']}. " if "dtype" in report else ""
    made = f"Trained by {stages}. " if stages else "Nothing is recorded of how it was trained. "
    if given is None:
        licence = "The licence is unknown: nothing that this model was made from states one."
    else:
        origin = "as given at export" if asked else "taken over from the base model's card"
        licence = f"Licence: {name or given} ({origin})."
    return f"{size}{made}Base model: {said_base}. {licence}"


def _stage(run: Path, manifest: dict[str, Any]) -> str:
    """One training stage: settings, data, rewards, closing figures."""
    method = str(manifest["method"])
    name = NAMES.get(method, method)
    parts = [f"## {name[:1].upper()}{name[1:]} ({run.resolve().name})"]
    if not manifest.get("finished", True):
        parts.append("The run had not finished.")
    settings = facts.settings(run, method)
    if settings:
        parts.append(table(("setting", "value"), settings.items()))
    data = facts.data(run, manifest)
    if data:
        head = ("data", "file", "records used", "dropped", "fingerprint")
        rows = [(d["key"], d["name"], d["used"], d["dropped"], d["sha256"]) for d in data]
        parts.append(table(head, rows))
    for reward in facts.rewards(run, manifest):
        parts.append(_reward(reward))
    figures = facts.closing(run, manifest)
    if figures:
        rows = [(k, number(v)) for k, v in sorted(figures.items())]
        parts.append("Closing figures (`eval_`: on held-out data):\n\n" + table(
            ("metric", "value"), rows))  # fmt: skip
    versions = manifest.get("versions") or {}
    shown = [f"{k} {versions[k]}" for k in ("align", "torch", "transformers", "peft") if
             k in versions]  # fmt: skip
    commit = (manifest.get("git") or {}).get("commit")
    shown += [f"commit {commit[:12]}"] if commit else []
    parts += [f"Made with {', '.join(shown)}."] if shown else []
    return "\n\n".join(parts)


def _reward(reward: dict[str, Any]) -> str:
    """One reward of PPO, and its contract where it is a reward model."""
    said = f"Reward: `{reward['name']}` ({reward['kind']}), weight {reward['weight']}"
    said += f", fingerprint {reward['sha256']}." if reward["sha256"] else "."
    contract = {k: reward["contract"][k] for k in CONTRACT if k in reward["contract"]}
    if not contract:
        return said
    return f"{said} Its contract:\n\n{table(('field', 'value'), contract.items())}"


def _chat(folder: Path, report: dict[str, Any]) -> str:
    """Template, stop and pad tokens."""
    config = read_object(folder / "tokenizer_config.json")
    template = config.get("chat_template")
    said = "## Chat template and stop tokens\n\n"
    if template is None:
        return said + "No chat template: give the model plain text."
    stops = report.get("stop_ids") or []
    rendered = f"```jinja\n{template.strip()}\n```"
    ends = f"An answer ends at one of the ids {', '.join(map(str, stops))}. " if stops else ""
    return (
        f"{said}{ends}Padding: `{config.get('pad_token')}`. Prompts are rendered with "
        f"`add_generation_prompt=True`:\n\n{rendered}"
    )


def _serving(extra: Sequence[str]) -> str:
    usual = [
        "vllm serve FOLDER --served-model-name NAME",
        "python recipes/serve_model.py --model FOLDER",
        "python recipes/check_server.py --url http://127.0.0.1:8000 --parity FOLDER/parity.jsonl",
    ]
    lines = "\n".join(f"    {line}" for line in extra or usual)
    return f"## How to serve\n\n{lines}"


def _unmeasured(run: Path | None, runs: list, report: dict[str, Any]) -> str:
    """What no file of the run says anything about; evaluations are named where they lie."""
    done, missing = [], []
    evaluation = read_object(run / "eval" / "evaluation.json") if run else {}
    if evaluation:
        parts = [n for n in ("perplexity", "generation", "lm_eval") if n in evaluation]
        done.append(_evaluation(evaluation, [*parts, *evaluation.get("suites", {})]))
    else:
        missing.append("benchmarks and suites (recipes/evaluate_policy.py)")
    if not (run and (run / "red_team" / "red_team.json").is_file()):
        missing.append("resistance to attacks (recipes/red_team.py)")
    held_out = any(k.startswith("eval_") for r, m in runs[:1] for k in facts.closing(r, m))
    missing += [] if held_out else ["figures on held-out data"]
    missing.append("what people think of its answers")
    if report.get("dtype") not in (None, "float32"):
        missing.append(f"the effect of {report['dtype']} on the figures above")
    body = "## What was not measured\n\n" + "\n".join(f"- {m}" for m in missing)
    return "\n\n".join([*done, body])


def _evaluation(result: dict[str, Any], parts: list[str]) -> str:
    rows = []
    perplexity = result.get("perplexity", {}).get("perplexity")
    rows += [("perplexity", number(perplexity))] if perplexity is not None else []
    for name, value in result.get("generation", {}).items():
        mean = value.get("mean") if isinstance(value, dict) else value
        rows += [(name, number(float(mean)))] if isinstance(mean, int | float) else []
    text = f"## Evaluation\n\nMeasured: {', '.join(parts)}."
    return f"{text}\n\n{table(('figure', 'value'), rows)}" if rows else text


def _languages(run: Path | None) -> list[str]:
    """zh, en or both: the scripts that the run's first prompts are written in."""
    from align.export.parity import own_prompts
    from reward_models.language import language

    seen = {language(m["content"]) for turns in own_prompts(run) for m in turns}
    return [code for code in ("zh", "en") if code in seen or "mixed" in seen]


def table(head: Sequence[str], rows: Any) -> str:
    """A Markdown table; what is not known is a dash."""
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in rows:
        cells = ["–" if cell is None else str(cell).replace("|", "\\|") for cell in row]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
