"""Data formats and chat templates, through the recipes: the same content trains the same steps."""

from __future__ import annotations

import pytest
import recipe_runs as rr
from transformers import AutoTokenizer

THREE_STEPS = ["--train.max_steps", "3", "--train.per_device_train_batch_size", "2"]
JINJA = (
    "{% for m in messages %}"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content + eos_token }}{% endgeneration %}"
    "{% else %}{{ '[' + m.role + '] ' + m.content + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '' }}{% endif %}"
)


def said(role, text):
    return {"role": role, "content": text}


def sft_rows(form):
    for prompt, answer, _ in rr.PAIRS:
        turns = [said("user", prompt), said("assistant", answer)]
        yield {
            "alpaca": {"instruction": prompt, "input": "", "output": answer},
            "alpaca_without_input": {"instruction": prompt, "output": answer},
            "messages": {"messages": turns},
            "sharegpt": {
                "conversations": [
                    {"from": "human", "value": prompt},
                    {"from": "gpt", "value": answer},
                ]
            },
            "prompt_completion": {"prompt": prompt, "completion": answer},
        }[form]


def pair_rows(form):
    for prompt, better, worse in rr.PAIRS:
        asked = [said("user", prompt)]
        answers = [[said("assistant", better)], [said("assistant", worse)]]
        candidates = [{"id": "a", "content": better}, {"id": "b", "content": worse}]
        yield {
            "strings": {"prompt": prompt, "chosen": better, "rejected": worse},
            "message_lists": {"prompt": asked, "chosen": answers[0], "rejected": answers[1]},
            "prompt_inside": {"chosen": asked + answers[0], "rejected": asked + answers[1]},
            "canonical": {
                "group_id": prompt, "prompt": asked, "candidates": candidates,
                "judgements": [
                    {"annotator": "甲", "kind": "pair", "value": {"winner": "a", "loser": "b"}}
                ],
            },
            "ranked": {
                "group_id": prompt, "prompt": asked, "candidates": candidates,
                "judgements": [{"annotator": "乙", "kind": "rank", "value": {"a": 1, "b": 2}}],
            },
        }[form]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("formats")
    rr.tiny_model(folder / "model")
    rr.tiny_model(folder / "plain", chat_template=None)
    rr.settings(folder)
    return folder


def run(place, recipe, name, *words):
    """Losses of a run, which must end well."""
    run_dir = place / "runs" / name
    argv = ["--config", str(place / "config.yaml"), "--train.output_dir", str(run_dir), *words]
    assert rr.main_of(recipe)(argv) == 0
    return rr.losses(run_dir)


@pytest.mark.parametrize(
    "form", ["alpaca_without_input", "messages", "sharegpt", "prompt_completion"]
)
def test_sft_formats_train_alike(place, tmp_path, form):
    found = {}
    for name in ("alpaca", form):
        file = rr.write_rows(tmp_path / f"{name}.jsonl", list(sft_rows(name)))
        found[name] = run(place, "sft", f"sft-{form}-{name}", "--data.sft", str(file), *THREE_STEPS)
        assert rr.counts(place / "runs" / f"sft-{form}-{name}")[0]["used"] == 4
    assert len(found["alpaca"]) == 3
    assert found["alpaca"] == found[form]


@pytest.mark.parametrize("form", ["message_lists", "prompt_inside", "canonical", "ranked"])
def test_preference_formats_train_alike(place, tmp_path, form):
    found = {}
    for name in ("strings", form):
        file = rr.write_rows(tmp_path / f"{name}.jsonl", list(pair_rows(name)))
        words = ["--data.preferences", str(file), *THREE_STEPS]
        found[name] = run(place, "dpo", f"dpo-{form}-{name}", *words)
    assert len(set(found["strings"])) == 3
    assert found["strings"] == found[form]


@pytest.mark.parametrize("recipe", ["reward", "orpo", "ppo"])
def test_every_preference_method_reads_every_form(place, tmp_path, recipe):
    mixed = [
        list(pair_rows(form))[i]
        for i, form in enumerate(("strings", "message_lists", "prompt_inside", "canonical"))
    ]
    file = rr.write_rows(tmp_path / "mixed.jsonl", mixed)
    assert run(place, recipe, f"mixed-{recipe}", "--data.preferences", str(file))
    assert rr.counts(place / "runs" / f"mixed-{recipe}")[0]["used"] == 4


def ranked(k):
    """One prompt with k ranked answers, and the same judgements as rows of pairs."""
    answers = ["苹果、梨和李子。", "Apples, pears and plums.", "苹果。", "Fruits."][:k]
    candidates = [{"id": str(i), "content": text} for i, text in enumerate(answers)]
    asked = [said("user", "请说三种水果。")]
    order = {str(i): i + 1 for i in range(k)}
    group = {
        "group_id": "水果", "prompt": asked, "candidates": candidates,
        "judgements": [{"annotator": "甲", "kind": "rank", "value": order}],
    }  # fmt: skip
    pairs = [
        {"prompt": asked, "chosen": answers[i], "rejected": answers[j]}
        for i in range(k) for j in range(i + 1, k)
    ]  # fmt: skip
    return group, pairs


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["dpo", "reward"])
@pytest.mark.parametrize("k", [2, 3, 4])
def test_a_ranked_group_is_the_mean_of_its_pairs(place, tmp_path, recipe, k):
    """One group of k answers a step, and its k(k−1)/2 pairs as rows of a step."""
    group, pairs = ranked(k)
    assert len(pairs) == {2: 1, 3: 3, 4: 6}[k]
    name = f"{recipe}-{k}"
    one = rr.write_rows(tmp_path / "group.jsonl", [group])
    many = rr.write_rows(tmp_path / "pairs.jsonl", pairs)
    grouped = run(
        place, recipe, f"{name}-group", "--data.preferences", str(one), "--train.max_steps", "3",
        "--train.per_device_train_batch_size", "1",
    )  # fmt: skip
    apart = run(
        place, recipe, f"{name}-pairs", "--data.preferences", str(many), "--train.max_steps", "3",
        "--train.per_device_train_batch_size", str(len(pairs)),
    )  # fmt: skip
    assert grouped == pytest.approx(apart, abs=2e-5)
    assert grouped[-1] < grouped[0]


def test_votes_become_soft_targets(place, tmp_path, capsys):
    asked = [said("user", "请介绍一下长城。")]
    votes = [("a", "b"), ("a", "b"), ("b", "a")]
    row = {
        "group_id": "g", "prompt": asked,
        "candidates": [
            {"id": "a", "content": "长城是中国古代的防御工程。"},
            {"id": "b", "content": "长城很长。"},
        ],
        "judgements": [
            {"annotator": str(i), "kind": "pair", "value": {"winner": won, "loser": lost}}
            for i, (won, lost) in enumerate(votes)
        ],
    }  # fmt: skip
    file = rr.write_rows(tmp_path / "votes.jsonl", [row])
    words = ["--config", str(place / "config.yaml"), "--data.preferences", str(file), "--dry_run"]
    assert rr.main_of("reward")(words) == 0
    assert "0 is preferred to 1 with probability 0.666667, weight 1" in capsys.readouterr().out
    assert rr.main_of("reward")([*words, "--reward.aggregate", "majority"]) == 0
    assert "0 is preferred to 1 with probability 1, weight 1" in capsys.readouterr().out


# What is in the loss, as --dry_run shows it.

TALK = [
    said("system", "用中文回答。"),
    said("user", "怎样泡一杯绿茶？"),
    said("assistant", "放三克茶叶。"),
    said("user", "然后呢？"),
    said("assistant", "泡两分钟。"),
]


def shown(place, capsys, recipe, *words):
    """The example of a dry run."""
    argv = ["--config", str(place / "config.yaml"), "--dry_run", *words]
    assert rr.main_of(recipe)(argv) == 0
    return capsys.readouterr().out.split("is in the loss)\n")[1].split("\n\n# size")[0]


@pytest.mark.parametrize(
    ("loss_on", "first", "second"),
    [
        ("assistant", "⟦放三克茶叶。<|im_end|>⟧", "⟦泡两分钟。<|im_end|>⟧"),
        ("completion", "放三克茶叶。<|im_end|>\n", "⟦泡两分钟。<|im_end|>⟧"),
    ],
)
def test_the_loss_mask_of_a_conversation(place, tmp_path, capsys, loss_on, first, second):
    file = rr.write_rows(tmp_path / "talk.jsonl", [{"messages": TALK}])
    text = shown(place, capsys, "sft", "--data.sft", str(file), "--sft.loss_on", loss_on)
    assert f"<|im_start|>assistant\n{first}" in text
    assert f"<|im_start|>assistant\n{second}" in text
    assert "<|im_start|>system\n用中文回答。<|im_end|>" in text
    assert text.count("⟦") == {"assistant": 2, "completion": 1}[loss_on]


def test_multi_turn_preferences(place, tmp_path, capsys):
    row = {"prompt": TALK[:4], "chosen": "泡两分钟。", "rejected": "不知道。"}
    file = rr.write_rows(tmp_path / "turns.jsonl", [row, *rr.pair_rows()])
    text = shown(place, capsys, "dpo", "--data.preferences", str(file))
    candidates = text.split("[candidate 1]")
    assert "放三克茶叶。<|im_end|>\n<|im_start|>user\n然后呢？" in candidates[0]
    assert candidates[0].count("⟦") == candidates[1].count("⟦") == 1
    assert "⟦泡两分钟。<|im_end|>⟧" in candidates[0]
    assert "⟦不知道。<|im_end|>⟧" in candidates[1]
    for recipe in ("dpo", "ppo", "reward"):
        assert run(place, recipe, f"turns-{recipe}", "--data.preferences", str(file))


# The instruction 把句子译成英文。 with the input 今天天气很好。 in each layout.
LAYOUTS = {
    "chatml": "<|im_start|>user\n把句子译成英文。\n\n今天天气很好。<|im_end|>\n"
              "<|im_start|>assistant\n⟦It is fine.<|im_end|>⟧",
    "zh_instruction": "# 指令\n把句子译成英文。\n# 输入\n今天天气很好。\n# 回覆\n"
                      "⟦It is fine.<|endoftext|>⟧",
    "inst": "[INST] 把句子译成英文。\n\n今天天气很好。 [/INST]⟦ It is fine.<|endoftext|>⟧",
    "jinja": "[user] 把句子译成英文。\n\n今天天气很好。\n⟦It is fine.<|endoftext|>⟧",
}  # fmt: skip


@pytest.mark.parametrize("template", LAYOUTS)
def test_models_without_a_template(place, tmp_path, capsys, template):
    name = template
    if template == "jinja":
        (tmp_path / "own.jinja").write_text(JINJA, encoding="utf-8")
        name = str(tmp_path / "own.jinja")
    row = {"instruction": "把句子译成英文。", "input": "今天天气很好。", "output": "It is fine."}
    file = rr.write_rows(tmp_path / "alpaca.jsonl", [row] * 4)
    words = ["--policy.path", str(place / "plain"), "--data.sft", str(file)]
    words += ["--data.chat_template", name]
    assert shown(place, capsys, "sft", *words) == LAYOUTS[template]
    assert run(place, "sft", f"template-{template}", *words)
    # The template travels with the model: the next stage needs no key.
    tokenizer = AutoTokenizer.from_pretrained(place / "runs" / f"template-{template}" / "final")
    asked = [said("user", "把句子译成英文。\n\n今天天气很好。")]
    text = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    assert text == LAYOUTS[template].split("⟦")[0]


@pytest.mark.parametrize("template", ["chatml", "zh_instruction", "inst"])
def test_preferences_under_every_template(place, tmp_path, template):
    file = rr.write_rows(tmp_path / "pairs.jsonl", rr.pair_rows())
    words = ["--policy.path", str(place / "plain"), "--data.preferences", str(file)]
    words += ["--data.chat_template", template]
    found = run(place, "dpo", f"dpo-{template}", *words)
    assert found[0] == pytest.approx(0.6931, abs=1e-4)
    assert run(place, "ppo", f"ppo-{template}", *words)


def test_no_template_at_all_is_refused(place, tmp_path, capsys):
    file = rr.write_rows(tmp_path / "alpaca.jsonl", list(sft_rows("alpaca")))
    words = ["--policy.path", str(place / "plain"), "--data.sft", str(file)]
    assert rr.main_of("sft")(["--config", str(place / "config.yaml"), *words]) == 2
    assert (
        "data.chat_template=null and the tokenizer has no chat template" in capsys.readouterr().err
    )
