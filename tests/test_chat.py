"""Rendering: completions are exactly what sampling would have to produce, for every template."""

from __future__ import annotations

import functools

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from align.chat import (
    completion_text,
    header_len,
    prepare_tokenizer,
    render_completion,
    render_conversation,
    render_prompt,
    stop_ids,
    template_hash,
)
from align.config import UserError
from align.records import Message, RecordError

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful AI assistant named SmolLM<|im_end|>\\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' "
    "+ '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
QWEN25 = (
    "{%- if messages[0]['role'] == 'system' %}\n"
    "    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}\n"
    "{%- else %}\n"
    "    {{- '<|im_start|>system\\nYou are Qwen.<|im_end|>\\n' }}\n"
    "{%- endif %}\n"
    "{%- for message in messages %}\n"
    "    {%- if not loop.first or message.role != 'system' %}\n"
    "        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}\n"
    "    {%- endif %}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n"
)
# Thoughts are dropped from history, and the last answer is given an empty one.
QWEN3 = (
    "{%- set ns = namespace(last=0) %}"
    "{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}"
    "{%- endfor %}"
    "{%- for m in messages %}"
    "{%- if m.role == 'assistant' %}"
    "{%- set content = m.content.split('</think>')[-1].lstrip('\\n') %}"
    "{%- if loop.index0 > ns.last %}"
    "{{- '<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' + content + '<|im_end|>\\n' }}"
    "{%- else %}{{- '<|im_start|>assistant\\n' + content + '<|im_end|>\\n' }}{%- endif %}"
    "{%- else %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
LLAMA3 = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + "
    "'<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
    "{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
    "{% endif %}{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
    "{% endif %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}"
    "{% endif %}{% endfor %}"
)
# Mistral 0.3 moves the system text into the last user turn, so history changes as it grows.
MISTRAL3 = (
    "{%- set ns = namespace(system='', last=0) %}"
    "{%- for m in messages %}{%- if m.role == 'system' %}{%- set ns.system = m.content %}"
    "{%- elif m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}"
    "{{- bos_token }}{%- for m in messages %}{%- if m.role == 'user' %}{{- '[INST] ' }}"
    "{%- if loop.index0 == ns.last and ns.system %}{{- ns.system + '\\n\\n' }}{%- endif %}"
    "{{- m.content + '[/INST]' }}"
    "{%- elif m.role == 'assistant' %}{{- ' ' + m.content + eos_token }}{%- endif %}{%- endfor %}"
)
# The generation prompt opens a thought that history does not show.
R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{{ '<|im_start|>assistant\\n' + m['content'].split('</think>')[-1] + eos_token }}"
    "{% else %}{{ '<|im_start|>user\\n' + m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}"
)
# No generation prompt, no special token, no end.
PLAIN = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ 'Bot: ' + m['content'] + '\\n' }}"
    "{% else %}{{ 'Human: ' + m['content'] + '\\n' }}{% endif %}{% endfor %}"
)

EOT, IM, LLAMA, TURN = "<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<end_of_turn>"
# name: (template or our name, eos, bos, other special tokens, text that ends a turn)
CASES = {
    "chatml": ("chatml", EOT, None, ["<|im_start|>", IM], IM),
    "chatml_no_token": ("chatml", EOT, None, [], EOT),
    "chatml_bos": ("chatml", "</s>", "<s>", ["<|im_start|>", IM], IM),
    "zh_instruction": ("zh_instruction", EOT, None, [], EOT),
    "zh_bos": ("zh_instruction", "</s>", "<s>", [], "</s>"),
    "inst": ("inst", "</s>", "<s>", [], "</s>"),
    "smollm2": (SMOLLM2, IM, "<|im_start|>", [], IM),
    "qwen25": (QWEN25, IM, None, [EOT, "<|im_start|>"], IM),
    "qwen3": (QWEN3, IM, None, [EOT, "<|im_start|>", "<think>", "</think>"], IM),
    "llama3": (
        LLAMA3,
        "<|end_of_text|>",
        "<|begin_of_text|>",
        ["<|start_header_id|>", "<|end_header_id|>", LLAMA],
        LLAMA,
    ),
    "gemma": (GEMMA, "<eos>", "<bos>", ["<start_of_turn>", TURN], TURN),
    "mistral": (MISTRAL, "</s>", "<s>", [], "</s>"),
    "mistral3": (MISTRAL3, "</s>", "<s>", ["[INST]", "[/INST]"], "</s>"),
    "r1": (R1, "</s>", "<s>", ["<|im_start|>"], "</s>"),
    "plain": (PLAIN, EOT, None, [], EOT),
}
ADDS_BOS = ("chatml_bos", "zh_bos", "inst", "llama3", "gemma", "mistral", "mistral3", "r1")
CORPUS = [
    "hello world, the answer is yes. What is the weather today? assistant user system\n\n",
    "你好，世界。今天天气很好，我们去公园散步吧！\n# 指令\n写一条好评\n# 输入\n# 回覆\n",
    "[INST] question [/INST] answer Human: Bot: <think> </think>\n",
]


@functools.cache
def bare(eos, bos, special, add_bos):
    """A byte-level BPE with the given special tokens."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokens = [token for token in (eos, bos, *special) if token]
    trainer = trainers.BpeTrainer(
        vocab_size=450,
        special_tokens=tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS * 3, trainer)
    if add_bos:
        pair = (bos, backend.token_to_id(bos))
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[pair]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=eos, bos_token=bos, clean_up_tokenization_spaces=False
    )


@functools.cache
def tokenizer_for(name):
    template, eos, bos, special, _ = CASES[name]
    tokenizer = bare(eos, bos, tuple(special), name in ADDS_BOS).__class__(
        tokenizer_object=bare(eos, bos, tuple(special), name in ADDS_BOS).backend_tokenizer,
        eos_token=eos,
        bos_token=bos,
        clean_up_tokenization_spaces=False,
    )
    if template in ("chatml", "zh_instruction", "inst"):
        return prepare_tokenizer(tokenizer, template)
    tokenizer.chat_template = template
    return prepare_tokenizer(tokenizer)


every = pytest.mark.parametrize("name", CASES)
USER, BOT, SYSTEM = "user", "assistant", "system"
ZH = [Message(USER, "今天天气很好吗？")]
MULTI = [
    Message(USER, "第一个问题"),
    Message(BOT, "hello"),
    Message(USER, "hello"),
    Message(BOT, "a"),
    Message(USER, "What is\nthe answer?"),
    Message(BOT, "今天天气很好。"),
]


def learned(tokenizer, ids, mask):
    """Decoded runs of masked tokens."""
    runs, run = [], []
    for token, keep in [*zip(ids, mask, strict=True), (None, 0)]:
        if keep:
            run.append(token)
        elif run:
            runs.append(tokenizer.decode(run))
            run = []
    return runs


def strip_frame(text):
    """What a template may put inside a completion before the answer."""
    return text.removeprefix("<think>\n\n</think>\n\n").strip()


@every
@pytest.mark.parametrize("answer", ["今天天气很好。", "The answer is yes.", "assistant", "a\n\nb"])
def test_completion_is_the_answer_and_its_end(name, answer):
    tokenizer = tokenizer_for(name)
    prompt_ids, completion_ids, mask = render_completion(tokenizer, ZH, answer)
    assert prompt_ids == render_prompt(tokenizer, ZH)
    assert mask == [1] * len(completion_ids)
    end = CASES[name][4]
    text = tokenizer.decode(completion_ids)
    assert text.endswith(end)
    assert strip_frame(text.removesuffix(end)) == answer
    assert completion_ids[-1] == tokenizer.convert_tokens_to_ids(end) == stop_ids(tokenizer)[0]
    assert sum(token in stop_ids(tokenizer) for token in completion_ids) == 1


@every
def test_prompt_plus_completion_is_the_conversation(name):
    tokenizer = tokenizer_for(name)
    prompt_ids, completion_ids, _ = render_completion(tokenizer, ZH, "很好")
    ids, mask = render_conversation(tokenizer, [*ZH, Message(BOT, "很好")])
    assert ids == prompt_ids + completion_ids
    assert mask == [0] * len(prompt_ids) + [1] * len(completion_ids)


@every
def test_prompt_is_the_templates_own_text(name):
    """transformers' own rendering is the oracle: what a server does with the saved tokenizer."""
    tokenizer = tokenizer_for(name)
    plain = [m.to_json() for m in ZH]
    served = tokenizer.apply_chat_template(plain, add_generation_prompt=True, return_dict=False)
    ids = render_prompt(tokenizer, ZH)
    assert ids[: len(served)] == served
    extra = tokenizer.decode(ids[len(served) :])
    assert extra == ("Bot:" if name == "plain" else "")


@every
def test_full_text_is_the_templates_own_text(name):
    tokenizer = tokenizer_for(name)
    ids, _ = render_conversation(tokenizer, [*ZH, Message(BOT, "很好")])
    plain = [*(m.to_json() for m in ZH), {"role": BOT, "content": "很好"}]
    text = tokenizer.apply_chat_template(plain, tokenize=False)
    if name == "r1":
        text = text.replace("assistant\n很好", "assistant\n<think>\n很好")
    if name == "plain":
        text = text.rstrip() + EOT
    assert tokenizer.decode(ids) == text.rstrip()


@every
def test_bos_exactly_once_and_only_where_it_belongs(name):
    tokenizer = tokenizer_for(name)
    ids, _ = render_conversation(tokenizer, [*ZH, Message(BOT, "很好")])
    if name in ADDS_BOS:
        assert ids[0] == tokenizer.bos_token_id
        assert ids.count(tokenizer.bos_token_id) == 1
    elif name != "smollm2":  # whose BOS is <|im_start|>
        assert tokenizer.bos_token_id is None


@every
def test_every_assistant_turn_and_nothing_else_is_learned(name):
    tokenizer = tokenizer_for(name)
    ids, mask = render_conversation(tokenizer, MULTI, "assistant")
    end = CASES[name][4]
    runs = learned(tokenizer, ids, mask)
    answers = ["hello", "a", "今天天气很好。"]
    if name == "plain":  # nothing ends its turns but the last
        assert [r.strip() for r in runs] == ["hello", "a", answers[2] + end]
    else:
        assert [strip_frame(run) for run in runs] == [answer + end for answer in answers]


@every
def test_completion_loss_is_on_the_last_turn(name):
    tokenizer = tokenizer_for(name)
    ids, mask = render_conversation(tokenizer, MULTI, "completion")
    [run] = learned(tokenizer, ids, mask)
    assert strip_frame(run) == "今天天气很好。" + CASES[name][4]
    assert mask[-1] == 1
    assert ids[: mask.index(1)] == render_prompt(tokenizer, MULTI[:-1])


@every
def test_all_loss_covers_every_token(name):
    tokenizer = tokenizer_for(name)
    ids, mask = render_conversation(tokenizer, MULTI, "all")
    assert mask == [1] * len(ids)
    assert ids == render_conversation(tokenizer, MULTI, "completion")[0]


@every
def test_completion_of_several_turns(name):
    tokenizer = tokenizer_for(name)
    prompt_ids, completion_ids, mask = render_completion(tokenizer, MULTI[:1], MULTI[1:])
    assert prompt_ids == render_prompt(tokenizer, MULTI[:1])
    runs = learned(tokenizer, completion_ids, mask)
    assert [strip_frame(r).removesuffix(CASES[name][4]) for r in runs] == [
        "hello",
        "a",
        "今天天气很好。",
    ]
    assert mask[0] == mask[-1] == 1


@every
def test_what_follows_the_last_answer_is_not_kept(name):
    tokenizer = tokenizer_for(name)
    want = render_conversation(tokenizer, MULTI[:4])
    assert render_conversation(tokenizer, MULTI[:5]) == want


@every
def test_header_survives_in_the_last_header_len_tokens(name):
    tokenizer = tokenizer_for(name)
    n = header_len(tokenizer)
    for content in ("今天。", "hello", "问?", "x y z", "a1"):
        ids = render_prompt(tokenizer, [Message(USER, content)])
        tail = tokenizer.decode(ids[-n:])
        header = tokenizer.decode(ids).split(content)[-1]
        assert header.strip()
        assert tail.endswith(header)
    long = render_prompt(tokenizer, [Message(USER, "天气 weather " * 30)])
    assert n < len(long) / 4


@every
def test_completion_text_undoes_rendering(name):
    tokenizer = tokenizer_for(name)
    _, ids, _ = render_completion(tokenizer, ZH, "今天 hello")
    text = completion_text(tokenizer, [*ids, *ids])
    assert strip_frame(text) == "今天 hello"
    if name not in ("qwen3",):
        assert text == "今天 hello"
    assert render_completion(tokenizer, ZH, text)[1] == ids


@every
def test_system_message_is_in_the_prompt(name):
    tokenizer = tokenizer_for(name)
    messages = [Message(SYSTEM, "Be kind."), *ZH]
    if name == "mistral":  # refuses the role: the text joins the user turn
        merged = [Message(USER, "Be kind.\n\n" + ZH[0].content)]
        assert render_prompt(tokenizer, messages) == render_prompt(tokenizer, merged)
    assert "Be kind." in tokenizer.decode(render_prompt(tokenizer, messages))
    ids, completion, _ = render_completion(tokenizer, messages, "好")
    assert ids == render_prompt(tokenizer, messages)
    assert tokenizer.decode(completion).endswith("好" + CASES[name][4])


def test_mistral_that_moves_the_system_text_still_masks_each_answer():
    tokenizer = tokenizer_for("mistral3")
    messages = [Message(SYSTEM, "Be kind."), *MULTI]
    ids, mask = render_conversation(tokenizer, messages)
    runs = learned(tokenizer, ids, mask)
    assert [run.strip() for run in runs] == ["hello</s>", "a</s>", "今天天气很好。</s>"]
    text = tokenizer.decode(ids)
    assert text.count("Be kind.") == 1
    assert "Be kind.\n\nWhat is\nthe answer?" in text


def test_gemma_without_a_system_role():
    tokenizer = tokenizer_for("gemma")
    ids = render_prompt(tokenizer, [Message(SYSTEM, "Be kind."), *ZH])
    expected = "<bos><start_of_turn>user\nBe kind.\n\n今天天气很好吗？<end_of_turn>\n"
    assert tokenizer.decode(ids) == expected + "<start_of_turn>model\n"


def test_template_that_refuses_is_a_record_error():
    tokenizer = tokenizer_for("gemma")
    with pytest.raises(RecordError, match="must alternate") as caught:
        render_prompt(tokenizer, [Message(USER, "a"), Message(USER, "b")])
    assert caught.value.code == "template_refuses"


LITERAL = {
    "chatml": (
        "<|im_start|>system\n简短<|im_end|>\n<|im_start|>user\n写一条好评\n\n关于书<|im_end|>\n"
        "<|im_start|>assistant\n好书<|im_end|>\n<|im_start|>user\n再来<|im_end|>\n"
        "<|im_start|>assistant\n"
    ),
    "chatml_no_token": (
        "<|im_start|>system\n简短<|im_end|>\n<|im_start|>user\n写一条好评\n\n关于书<|im_end|>\n"
        "<|im_start|>assistant\n好书<|endoftext|>\n<|im_start|>user\n再来<|im_end|>\n"
        "<|im_start|>assistant\n"
    ),
    "zh_instruction": (
        "# 系统\n简短\n# 指令\n写一条好评\n# 输入\n关于书\n# 回覆\n好书<|endoftext|>\n"
        "# 指令\n再来\n# 输入\n\n# 回覆\n"
    ),
    "inst": (
        "<s>[INST] <<SYS>>\n简短\n<</SYS>>\n\n写一条好评\n\n关于书 [/INST] 好书</s>"
        "[INST] 再来 [/INST]"
    ),
}


@pytest.mark.parametrize("name", LITERAL)
def test_our_layouts_letter_by_letter(name):
    tokenizer = tokenizer_for(name)
    messages = [
        Message(SYSTEM, "简短"),
        Message(USER, "写一条好评\n\n关于书"),
        Message(BOT, "好书"),
        Message(USER, "再来"),
    ]
    assert tokenizer.decode(render_prompt(tokenizer, messages)) == LITERAL[name]


@pytest.mark.parametrize("name", ["chatml", "chatml_no_token", "chatml_bos", "zh_bos", "inst"])
@pytest.mark.parametrize("system", [[], [Message(SYSTEM, "s")]])
def test_our_generation_marks_agree_with_the_measured_mask(name, system):
    """transformers' assistant mask, read from the marks, is an independent oracle."""
    tokenizer = tokenizer_for(name)
    messages = [*system, *MULTI]
    ids, mask = render_conversation(tokenizer, messages)
    out = tokenizer.apply_chat_template(
        [m.to_json() for m in messages], return_dict=True, return_assistant_tokens_mask=True
    )
    assert out["input_ids"][: len(ids)] == ids
    assert out["assistant_masks"][: len(ids)] == mask
    assert not any(out["assistant_masks"][len(ids) :])


def test_conversation_that_begins_with_the_assistant():
    tokenizer = tokenizer_for("chatml")
    messages = [Message(BOT, "您好"), Message(USER, "hi"), Message(BOT, "好")]
    ids, mask = render_conversation(tokenizer, messages)
    assert learned(tokenizer, ids, mask) == ["您好<|im_end|>", "好<|im_end|>"]


def test_eos_is_learned_when_pad_is_eos():
    tokenizer = tokenizer_for("zh_instruction")
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    _, ids, mask = render_completion(tokenizer, ZH, "好")
    assert (ids[-1], mask[-1]) == (tokenizer.eos_token_id, 1)


def test_answer_that_already_ends_with_the_end_token():
    tokenizer = tokenizer_for("zh_instruction")
    assert render_completion(tokenizer, ZH, "好<|endoftext|>") == render_completion(
        tokenizer, ZH, "好"
    )


def test_empty_answer_learns_to_stop():
    for name in CASES:
        tokenizer = tokenizer_for(name)
        _, ids, mask = render_completion(tokenizer, ZH, "")
        assert ids[-1] == stop_ids(tokenizer)[0]
        assert mask[-1] == 1


def test_merge_over_the_border_keeps_the_prompt():
    """ "\\n" + "\\n" is one token in this vocabulary, but sampling starts after the first."""
    tokenizer = tokenizer_for("zh_instruction")
    merged = tokenizer("# 回覆\n\n\n字", add_special_tokens=False)["input_ids"]
    alone = tokenizer("# 回覆\n", add_special_tokens=False)["input_ids"]
    assert merged[: len(alone)] != alone
    prompt_ids, ids, _ = render_completion(tokenizer, ZH, "\n\n字")
    assert prompt_ids == render_prompt(tokenizer, ZH)
    assert tokenizer.decode(ids) == "\n\n字<|endoftext|>"


@pytest.mark.parametrize("loss_on", ["assistant", "completion"])
def test_no_assistant_turn_is_an_error(loss_on):
    with pytest.raises(RecordError, match="no assistant turn") as caught:
        render_conversation(tokenizer_for("chatml"), ZH, loss_on)
    assert caught.value.code == "no_assistant"


def test_all_loss_needs_no_assistant():
    ids, mask = render_conversation(tokenizer_for("chatml"), ZH, "all")
    assert mask == [1] * len(ids)
    assert ids


def test_wrong_arguments():
    tokenizer = tokenizer_for("chatml")
    with pytest.raises(ValueError, match="loss_on"):
        render_conversation(tokenizer, MULTI, "last")
    for bad in ([], [Message(USER, "x")]):
        with pytest.raises(RecordError, match="begin with an assistant"):
            render_completion(tokenizer, ZH, bad)
    with pytest.raises(RecordError, match="Unicode"):
        render_prompt(tokenizer, [Message(USER, "\ud800")])


def test_plain_dicts_are_messages_too():
    tokenizer = tokenizer_for("chatml")
    assert render_prompt(tokenizer, [{"role": "user", "content": "q"}]) == render_prompt(
        tokenizer, [Message(USER, "q")]
    )


def test_stop_ids():
    ids = {name: stop_ids(tokenizer_for(name)) for name in CASES}
    llama, chatml = tokenizer_for("llama3"), tokenizer_for("chatml")
    assert ids["llama3"] == tuple(llama.convert_tokens_to_ids([LLAMA, "<|end_of_text|>"]))
    assert ids["chatml"] == tuple(chatml.convert_tokens_to_ids([IM, EOT]))
    for name in ("chatml_no_token", "plain", "mistral", "smollm2"):
        assert ids[name] == (tokenizer_for(name).eos_token_id,)


def test_saved_tokenizer_renders_the_same(tmp_path):
    for name in ("chatml_no_token", "zh_bos", "inst"):
        tokenizer = tokenizer_for(name)
        tokenizer.save_pretrained(tmp_path / name)
        loaded = AutoTokenizer.from_pretrained(tmp_path / name)
        assert render_completion(loaded, MULTI[:3], "好") == render_completion(
            tokenizer, MULTI[:3], "好"
        )
        assert template_hash(loaded) == template_hash(tokenizer)
        assert prepare_tokenizer(loaded) is loaded


def fresh(eos=EOT, bos=None):
    return PreTrainedTokenizerFast(
        tokenizer_object=bare(eos, bos, (), False).backend_tokenizer, eos_token=eos, bos_token=bos
    )


def test_prepare_sets_pad_and_side_and_keeps_a_given_pad():
    tokenizer = fresh()
    assert tokenizer.pad_token is None
    prepare_tokenizer(tokenizer, "inst")
    assert (tokenizer.pad_token, tokenizer.padding_side) == (EOT, "right")
    tokenizer.pad_token = "a"
    assert prepare_tokenizer(tokenizer, "inst").pad_token == "a"


def test_template_file(tmp_path):
    path = tmp_path / "t.jinja"
    path.write_text(PLAIN, encoding="utf-8")
    tokenizer = prepare_tokenizer(fresh(), str(path))
    assert tokenizer.decode(render_prompt(tokenizer, ZH)) == "Human: 今天天气很好吗？\nBot:"


def test_template_hash_tells_templates_apart():
    hashes = {template_hash(prepare_tokenizer(fresh(), n)) for n in ("chatml", "inst")}
    assert len(hashes) == 2


def test_prepare_errors(tmp_path):
    with pytest.raises(UserError, match="no chat template") as caught:
        prepare_tokenizer(fresh())
    assert caught.value.field == "data.chat_template"
    assert "chatml, zh_instruction, inst" in str(caught.value)
    with pytest.raises(UserError, match="neither a template name nor a file"):
        prepare_tokenizer(fresh(), "chatlm")
    with pytest.raises(UserError, match="without eos_token"):
        prepare_tokenizer(fresh(eos=None, bos=EOT), "chatml")
    for text, words in (("{% for %}", "refuses"), ("constant", "leaves out")):
        path = tmp_path / "bad.jinja"
        path.write_text(text)
        with pytest.raises(UserError, match=words):
            prepare_tokenizer(fresh(), str(path))


words = st.text(
    st.sampled_from("ab ,.?\n你好天气。！é🙂#[]<>|/_") | st.characters(codec="utf-8"), max_size=25
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(CASES)), words, words)
@example("qwen3", "a", "think")
@example("mistral3", "[INST]", "I")
@example("chatml", "assistant", "user")
@example("zh_instruction", "a\n\nb", "\n\n")
def test_rendering_properties(name, question, answer):
    tokenizer = tokenizer_for(name)
    special = [token for token in (*CASES[name][1:3], *CASES[name][3]) if token]
    assume(not any(token in question + answer for token in [*special, "</think>", "probe-"]))
    messages = [Message(USER, question)]
    prompt_ids, ids, mask = render_completion(tokenizer, messages, answer)
    assert prompt_ids == render_prompt(tokenizer, messages)
    assert len(mask) == len(ids)
    assert all(mask)
    assert sum(token in stop_ids(tokenizer) for token in ids) == 1
    assert ids[-1] in stop_ids(tokenizer)
    text = strip_frame(tokenizer.decode(ids[:-1]))
    assert text == answer.strip()
    whole = render_conversation(tokenizer, [*messages, Message(BOT, answer)])[0]
    assert whole == prompt_ids + ids


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(CASES)), st.lists(st.tuples(words, words), min_size=2, max_size=3))
def test_multi_turn_properties(name, pairs):
    tokenizer = tokenizer_for(name)
    special = [token for token in (*CASES[name][1:3], *CASES[name][3], "</think>") if token]
    assume(not any(token in "".join(pair) for pair in pairs for token in special))
    assume(all(answer.strip() for _, answer in pairs))
    messages = [Message(r, c) for pair in pairs for r, c in zip((USER, BOT), pair, strict=True)]
    ids, mask = render_conversation(tokenizer, messages)
    end = CASES[name][4]
    runs = [strip_frame(run.removesuffix(end)) for run in learned(tokenizer, ids, mask)]
    assert runs == [answer.strip() for _, answer in pairs]
