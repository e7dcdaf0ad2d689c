"""Where an answer begins and ends: the tokens of both sides under templates where they differ.

chatml, as most models have it, writes a line break after the end-of-turn token. trl takes all that
the template writes as the answer; ours ends where a sampler would stop.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import parity_runs as runs
import pytest

from align import chat

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def chatml(tmp_path_factory) -> Path:
    """The model of the other tests with the shipped chatml template."""
    tokenizer = chat.prepare_tokenizer(runs.make_tokenizer(), "chatml")
    return runs.make_model(tmp_path_factory.mktemp("chatml"), tokenizer)


def trl_trainer(kind: str, model: Path, rows: list[dict], run_dir: Path, **options) -> Any:
    """A trl trainer by name, on the folder."""
    where = "trl.experimental.orpo" if kind == "ORPO" else "trl"
    trl = pytest.importorskip(where)
    return getattr(trl, f"{kind}Trainer")(
        model=runs.load_lm(model) if kind == "ORPO" else str(model),
        args=getattr(trl, f"{kind}Config")(**runs.trl_arguments(run_dir, **options)),
        train_dataset=runs.dataset(rows),
        processing_class=runs.load_tokenizer(model),
    )


def newline_of(model: Path) -> list[int]:
    return runs.load_tokenizer(model)("\n")["input_ids"]


def test_dpo_answers_end_with_the_end_of_turn_token(chatml: Path, tmp_path: Path) -> None:
    rows = runs.preference_rows()
    theirs = trl_trainer("DPO", chatml, rows, tmp_path).train_dataset
    eos, newline = runs.load_tokenizer(chatml).eos_token_id, newline_of(chatml)
    for group, row in zip(runs.our_groups("dpo", chatml, rows, tmp_path), theirs, strict=True):
        assert group.prompt_ids == row["prompt_ids"]
        assert [ids[-1] for ids in group.completions] == [eos, eos]
        assert [ids + newline for ids in group.completions] == [
            row["chosen_ids"], row["rejected_ids"],
        ]  # fmt: skip


def test_reward_is_read_at_the_end_of_turn_token(chatml: Path, tmp_path: Path) -> None:
    """trl reads the score at the last token, which is the line break."""
    rows = runs.preference_rows()
    theirs = trl_trainer("Reward", chatml, rows, tmp_path).train_dataset
    found = runs.group_rows(runs.our_groups("reward", chatml, rows, tmp_path))
    newline = newline_of(chatml)
    expected = [ids for row in theirs for ids in (row["chosen_ids"], row["rejected_ids"])]
    assert [ids + newline for ids, _ in found] == expected


def test_orpo_answers_end_once(chatml: Path, tmp_path: Path) -> None:
    """trl's ORPO adds an EOS after the line break, which no sampler would write."""
    rows = runs.preference_rows()
    theirs = trl_trainer("ORPO", chatml, rows, tmp_path).train_dataset
    found = runs.group_rows(runs.our_groups("orpo", chatml, rows, tmp_path))
    extra = [*newline_of(chatml), runs.load_tokenizer(chatml).eos_token_id]
    expected = [i for row in theirs for i in (row["chosen_input_ids"], row["rejected_input_ids"])]
    assert [ids + extra for ids, _ in found] == expected


def test_sft_completion_ends_with_the_end_of_turn_token(chatml: Path, tmp_path: Path) -> None:
    """trl with completion_only_loss learns the line break too."""
    rows = [
        {"prompt": runs.chat("user", p), "completion": runs.chat("assistant", c)}
        for p, c, _ in runs.PAIRS
    ]
    theirs = trl_trainer("SFT", chatml, rows, tmp_path).train_dataset
    groups = runs.our_groups("sft", chatml, rows, tmp_path, sft={"loss_on": "completion"})
    newline = newline_of(chatml)
    for (ids, mask), row in zip(runs.group_rows(groups), theirs, strict=True):
        assert ids + newline == row["input_ids"]
        learned = [token for token, m in zip(ids, mask, strict=True) if m]
        assert learned + newline == [label for label in row["labels"] if label != -100]


def test_sft_assistant_loss_equals_trl_under_chatml(chatml: Path, tmp_path: Path) -> None:
    """The template's generation marks end at the same token, so only unlearned tokens differ."""
    rows = [
        {"messages": runs.chat("user", p) + runs.chat("assistant", c) + runs.chat("user", "？")
         + runs.chat("assistant", r)}
        for p, c, r in runs.PAIRS
    ]  # fmt: skip
    trainer = trl_trainer("SFT", chatml, rows, tmp_path, assistant_only_loss=True)
    groups = runs.our_groups("sft", chatml, rows, tmp_path / "rows")
    newline = newline_of(chatml)
    for (ids, mask), row in zip(runs.group_rows(groups), trainer.train_dataset, strict=True):
        assert ids + newline == row["input_ids"]
        assert [*mask, 0] == [int(label != -100) for label in row["labels"]]
    ours = runs.our_run("sft", chatml, rows, tmp_path, sft={"loss_on": "assistant"})
    runs.assert_equal_runs(ours, runs.trl_run(trainer))


def test_a_token_over_the_border_is_split_not_taken_from_the_prompt(tmp_path: Path) -> None:
    """ "Reply" + "ing" is one token: trl begins the answer before it, ours after the header.

    A sampler is given the prompt's own tokens, so an answer can only follow those.
    """
    template = (
        "{%- for m in messages -%}{%- if m['role'] == 'assistant' -%}"
        "{{- 'Reply' + m['content'] + '<|im_end|>' -}}"
        "{%- else -%}{{- m['content'] + '\n' -}}{%- endif -%}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- 'Reply' -}}{%- endif -%}"
    )
    texts = ["Reply"] * 30 + ["Replying"] * 20 + ["to you"] * 3
    tokenizer = runs.make_tokenizer(texts, template)
    header, joint = tokenizer("Reply")["input_ids"], tokenizer("Replying")["input_ids"]
    assert len(header) == len(joint) == 1
    model = runs.make_model(tmp_path / "model", tokenizer)
    rows = runs.preference_rows([("to you", "ing to you", "ing")])
    theirs = trl_trainer("DPO", model, rows, tmp_path).train_dataset[0]
    (group,) = runs.our_groups("dpo", model, rows, tmp_path)
    assert group.prompt_ids == [*theirs["prompt_ids"], *header]
    assert theirs["chosen_ids"][:1] == joint
    assert group.completions[0] == tokenizer("ing to you<|im_end|>")["input_ids"]
