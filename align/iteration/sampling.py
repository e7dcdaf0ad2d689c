"""n answers to each prompt, scored, on disk block by block: a killed run goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from align.evaluation.sampling import Decoding
from align.feedback.records import read_log
from align.iteration.select import Sample
from align.jsonl import write_jsonl
from align.records import Prompt, messages_json
from align.rollout.base import rank_seed

FILE = "samples.jsonl"
BLOCK = 16  # prompts between two writes


def scored_samples(
    load: Callable[[], tuple[Any, Any]],
    prompts: Sequence[Prompt],
    reward: Any,
    n: int,
    decoding: Decoding,
    output: Path,
    *,
    seed: int = 0,
    stop: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> tuple[dict[str, list[Sample]], int]:
    """({prompt_id: its n answers}, how many prompts were too long) of a model.

    load: gives model (of transformers, or `Hosted`) and tokenizer; called if there is something to
    do. Each block has a seed of
    its own and its lines are written together, so a run that was killed gives the same answers when
    it goes on. reward: `align.rewards.Reward`.
    """
    file = output / FILE
    done = _finished_blocks(file, n)
    asked = list(prompts)
    blocks = [asked[i : i + BLOCK] for i in range(0, len(asked), BLOCK)]
    if all(p.prompt_id in done for p in asked):
        return _by_prompt(done, asked)
    model, tokenizer = load()
    sampler, fits = _sampler(model, tokenizer, decoding, stop)
    for number, block in enumerate(blocks):
        if all(p.prompt_id in done for p in block):
            continue
        made = _block_rows(sampler, fits, reward, block, n, number, seed)
        rows = [row for row in made if row["prompt_id"] not in done]
        _append(file, rows)
        for row in rows:
            done.setdefault(row["prompt_id"], []).append(row)
        say(f"best of {n}: {min((number + 1) * BLOCK, len(asked))} of {len(asked)} prompts")
    return _by_prompt(done, asked)


def _sampler(
    model: Any, tokenizer: Any, decoding: Decoding, stop: Sequence[str]
) -> tuple[Any, Callable[[Prompt], list[int] | None]]:
    """The sampler, and a function that gives a prompt's ids, None where it is too long.

    model: a transformers model, or a `Hosted` one.
    """
    from align.chat import render_prompt, stop_ids
    from align.checkpoints import max_positions
    from align.iteration.hosting import Hosted
    from align.rollout.hf import HFSampler

    fields = {"stop_ids": stop_ids(tokenizer), "stop_strings": tuple(stop), **asdict(decoding)}
    if isinstance(model, Hosted):
        sampler, positions = model.sampler(tokenizer, fields), model.served.positions
    else:
        sampler, positions = HFSampler(model, tokenizer, **fields), max_positions(model)
    room = (positions or 10**9) - decoding.max_new_tokens

    def fits(prompt: Prompt) -> list[int] | None:
        ids = render_prompt(tokenizer, list(prompt.messages))
        return ids if len(ids) <= room else None

    return sampler, fits


def _block_rows(
    sampler: Any, fits: Any, reward: Any, block: list[Prompt], n: int, number: int, seed: int
) -> Iterator[dict[str, Any]]:
    """The lines of a block; a prompt that is too long has one line without an answer."""
    rendered = [(p, fits(p)) for p in block]
    kept = [(p, ids) for p, ids in rendered if ids is not None]
    for prompt, ids in rendered:
        if ids is None:
            yield {"prompt_id": prompt.prompt_id, "index": None, "too_long": True}
    if not kept:
        return
    out = sampler.sample([ids for _, ids in kept], n, rank_seed(seed, number))
    messages = [list(p.messages) for p, _ in kept for _ in range(n)]
    scores = reward(messages, out.texts, out.finished)
    for i, (text, score, finished) in enumerate(zip(out.texts, scores, out.finished, strict=True)):
        prompt = kept[i // n][0]
        yield {
            "prompt_id": prompt.prompt_id, "prompt": messages_json(prompt.messages), "index": i % n,
            "completion": text, "score": float(score), "finished": bool(finished),
            "length": len(out.completions[i]),
        }  # fmt: skip


def _append(file: Path, rows: list[dict[str, Any]]) -> None:
    lines = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    with file.open("ab") as stream:
        stream.write(lines.encode("utf-8", "replace"))
        stream.flush()
        os.fsync(stream.fileno())


def _finished_blocks(file: Path, n: int) -> dict[str, list[dict[str, Any]]]:
    """The lines of prompts that have all answers; others, and a torn line, leave the file."""
    rows, torn = read_log(file)
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(str(row.get("prompt_id")), []).append(row)
    whole = {k: v for k, v in found.items() if v[0].get("too_long") or len(v) == n}
    if torn or len(whole) < len(found):
        write_jsonl(file, (row for lines in whole.values() for row in lines))
    return whole


def _by_prompt(
    done: dict[str, list[dict[str, Any]]], prompts: Sequence[Prompt]
) -> tuple[dict[str, list[Sample]], int]:
    found: dict[str, list[Sample]] = {}
    too_long = 0
    for prompt in prompts:
        lines = done[prompt.prompt_id]
        if lines[0].get("too_long"):
            too_long += 1
            continue
        ordered = sorted(lines, key=lambda row: row["index"])
        found[prompt.prompt_id] = [
            Sample(row["completion"], row["score"], row["finished"]) for row in ordered
        ]
    return found, too_long
