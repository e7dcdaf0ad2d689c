"""The quantised forms of a finished policy: checked, made, measured, written whole or not at all.

Each is made from the merged float model, which is written beside the output and removed again. The
same tokens are scored and the same prompts answered before and after; `quantisation.json` holds
both. A form that exceeds --max_ppl_increase is not written.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.config_errors import UserError
from align.export import bnb, compressed, gguf, gptq, measure_rows, torchao_int8
from align.export.measure import (
    Figures,
    Task,
    check_limit,
    growth,
    table,
    with_transformers,
    write_report,
)
from align.export.parity import FILE as PARITY
from align.export.quantised_options import FORMS
from align.export.shapes import Facts, choose_group_size, read_facts
from align.files import fingerprint, whole_folder


@dataclass(frozen=True)
class Made:
    """One model of a form: its label, the figures of the float model and its own, what was done."""

    label: str
    before: Figures
    after: Figures
    how: dict[str, Any]


# Figures of float models by what they depend on: several forms of one command share them.
_before: dict[str, Figures] = {}


def check(name: str, source: Path | None, args: argparse.Namespace) -> None:
    """UserError for a form that cannot be made of a model here, before anything is loaded.

    source: the model folder; None, or one that holds no whole model, is checked again once the
    merged model lies on disk.
    """
    if name not in FORMS:
        raise UserError("--to", name, "is no quantised form", f"Use {', '.join(FORMS)}")
    if name != "gptq" and args.engine == "gptqmodel":
        raise UserError("--engine", args.engine, f"makes gptq, not {name}", "Leave it out")
    _check_shapes(name, None if source is None else read_facts(source), args)
    found = measure_rows.eval_data(args)
    measure_rows.prompts(args, found)
    _reward_path(args)
    if needs_calibration(name, args):
        measure_rows.calibration_data(args, name)


def needs_calibration(name: str, args: argparse.Namespace) -> bool:
    """Whether a form looks at data while it rounds."""
    return name in compressed.CALIBRATED or (name == "gptq" and args.engine == "gptqmodel")


def _check_shapes(name: str, facts: Facts | None, args: argparse.Namespace) -> None:
    if name in bnb.FORMS:
        bnb.check(name, facts)
    elif name == "int8":
        torchao_int8.check(name, facts)
    elif name == "gguf":
        gguf.check(facts, args.gguf_type)
    elif args.engine == "gptqmodel":
        gptq.check(name, facts, args.group_size)
    else:
        compressed.check(name, facts, args.group_size)


def export_quantised(
    name: str, source: Path, output: Path, args: argparse.Namespace
) -> dict[str, Any]:
    """Write a form of the model `source` to the folder `output`; returns quantisation.json.

    source: a whole model folder, an adapter or `args.checkpoint`. The caller has checked `output`;
    what lies there is replaced. Failed where perplexity grows beyond --max_ppl_increase, or the
    engine fails: the output is then as it was.
    """
    from align.export import hf

    output = Path(output)
    staging = output.with_name(f".{output.name}.float")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        whole = args.checkpoint is None or Path(args.checkpoint) != Path(source)
        make = hf.export if whole else hf.export_checkpoint
        make(
            source, staging, dtype=args.dtype, chat_template=args.chat_template, parity=args.parity
        )
        facts = read_facts(staging)
        _check_shapes(name, facts, args)
        task, calibration = _task(name, staging, args)
        with whole_folder(output) as folder:
            made = _make(name, staging, folder, task, calibration, facts, args)
            print(table([(m.label, m.before, m.after) for m in made]), flush=True)
            for one in made:
                check_limit(one.label, one.before, one.after, args.max_ppl_increase)
            report = _report(name, made, task)
            write_report(folder, report)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return report


def _make(
    name: str, staging: Path, folder: Path, task: Task, calibration: list[list[int]],
    facts: Facts | None, args: argparse.Namespace,
) -> list[Made]:  # fmt: skip
    """The form of the model in `staging`, in `folder`, with the figures of both."""
    if name == "gguf":
        if (staging / PARITY).is_file():  # the other forms take all that lies beside the weights
            shutil.copyfile(staging / PARITY, folder / PARITY)
        return [Made(*row) for row in gguf.make(staging, folder, task, args.gguf_type)]
    size = None
    if needs_calibration(name, args) and facts is not None:
        size = choose_group_size(facts, args.group_size)
    if name in bnb.FORMS:
        how = bnb.write(name, staging, folder)
    elif name == "int8":
        how = torchao_int8.write(name, staging, folder)
    elif args.engine == "gptqmodel":
        how = gptq.write(staging, folder, calibration, size or 128)
    else:
        how = compressed.write(name, staging, folder, calibration, size)
    _copy_companions(staging, folder)
    measured = _measure_with(name, args)
    label = f"{name} (gptqmodel)" if args.engine == "gptqmodel" else name
    return [Made(label, _once(staging, task, measured, args), measured(folder, task), how)]


def _measure_with(name: str, args: argparse.Namespace) -> Callable[[Path, Task], Figures]:
    """What measures a form, and the float model beside it."""
    if name in bnb.FORMS or name == "int8":
        bnb.quieten()
        return with_transformers
    return gptq.measure if args.engine == "gptqmodel" else compressed.measure


def _once(
    staging: Path, task: Task, measured: Callable[[Path, Task], Figures], args: argparse.Namespace
) -> Figures:
    key = json.dumps([
        fingerprint(staging), measured.__module__, task.notes, task.pairs, task.prompt_ids,
        args.answer_tokens,
    ])  # fmt: skip
    if key not in _before:
        _before[key] = measured(staging, task)
    return _before[key]


def _copy_companions(source: Path, folder: Path) -> None:
    """Put what lies beside the weights into the folder: tokenizer, template, generation config."""
    for file in source.iterdir():
        weights = file.suffix == ".safetensors" or file.name == "model.safetensors.index.json"
        if not weights and file.name not in ("config.json", "export.json"):
            shutil.copy2(file, folder / file.name)


def _reward_path(args: argparse.Namespace) -> tuple[str | None, str]:
    """(reward to load, why there is none). Code that a run's config names is not run by itself."""
    from align.evaluation.options import from_runs

    if args.reward is not None:
        if not Path(args.reward).exists() and ":" not in args.reward:
            fix = "Give a reward checkpoint, module:function or file.py:function"
            raise UserError("--reward", args.reward, "does not exist", fix)
        return args.reward, ""
    try:
        run = measure_rows.run_of(args.model or args.checkpoint)
        return from_runs([run], ["rewards"], "reward"), ""
    except UserError as error:
        return None, str(error)


def _task(name: str, staging: Path, args: argparse.Namespace) -> tuple[Task, list[list[int]]]:
    """What the form of the staged model is measured on, and the rows it is calibrated with."""
    from transformers import AutoConfig

    from align.chat import render_prompt, stop_ids
    from align.checkpoints import read_tokenizer
    from align.evaluation.sampling import load_reward
    from align.model_safety import code_options

    tokenizer = read_tokenizer(staging)
    options = code_options(staging, "model")
    config = AutoConfig.from_pretrained(str(staging), **options).get_text_config()
    positions = getattr(config, "max_position_embeddings", None)
    found = measure_rows.eval_data(args)
    chats = bool(tokenizer.chat_template)
    rows = [row for row in found.rows if chats or isinstance(row, str)]
    pairs = measure_rows.encode(tokenizer, rows, positions)
    if not pairs:
        reason = "holds nothing that the model can read" if chats else (
            "holds conversations, and the model has no chat template")  # fmt: skip
        raise UserError("--eval_data", found.source, reason, "Give texts, or --chat_template")
    asked, file = measure_rows.prompts(args, found) if chats else ([], "")
    room = (positions or 10**9) - args.answer_tokens
    rendered = [(p, render_prompt(tokenizer, list(p.messages))) for p in asked]
    kept = [(p, ids) for p, ids in rendered if len(ids) <= room]
    path, why = _reward_path(args)
    calibration: list[list[int]] = []
    if needs_calibration(name, args):
        rows = measure_rows.calibration_data(args, name).rows
        calibration = [c + t for c, t in measure_rows.encode(tokenizer, rows, positions)]
    task = Task(
        pairs, [p for p, _ in kept], [ids for _, ids in kept], args.answer_tokens,
        stop_ids(tokenizer) if chats else (tokenizer.eos_token_id,), tokenizer,
        load_reward(path) if path else None, why,
        {"eval_data": Path(found.source).name, "held_out": found.held_out,
         "prompts": Path(file).name, "reward": path and Path(path).name},
    )  # fmt: skip
    return task, calibration


def _report(name: str, made: list[Made], task: Task) -> dict[str, Any]:
    """What quantisation.json holds."""
    measured = {
        **task.notes,
        "scored_tokens": sum(len(t) for _, t in task.pairs),
        "answers": len(task.prompts),
        "answer_tokens": task.answer_tokens,
    }
    if task.reward is None:
        measured["no_reward"] = task.no_reward
    models = [
        {
            "name": one.label, "before": one.before.to_json(), "after": one.after.to_json(),
            "perplexity_growth": growth(one.before, one.after), **one.how,
        }
        for one in made
    ]  # fmt: skip
    return {"form": name, "measured_on": measured, "models": models}
