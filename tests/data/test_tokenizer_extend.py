"""Extending a base: old ids keep their meaning, new tokens are merges, new rows are means."""

from __future__ import annotations

import itertools
import json
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parent))
import tokenizer_texts as tt

from align.checkpoints import read_tokenizer
from align.config import UserError
from align.config_schema import Tokenizer
from align.data.tokenizer import learn_tokenizer, save_tokenizer
from align.data.tokenizer_embeddings import add_rows
from align.data.tokenizer_extend import extend_backend, extend_folder, utf8_symbols

SIZE, MORE = 420, 1500
KINDS = ("byte_bpe", "bpe", "unigram")
LONG = ["酒店的房间很干净，早餐不错。 the room", "价格便宜 2008 <0x41>", "  x\n\ty", "龘"]


def base_of(kind: str, folder: Path) -> Path:
    """A tokenizer that knows English; few Chinese characters, or none."""
    settings = Tokenizer(kind=kind, vocab_size=360 if kind == "unigram" else SIZE)
    learned = learn_tokenizer(tt.english(400), settings, chat_template="chatml")
    save_tokenizer(learned, folder)
    return folder


def extend(base: Path, target: Path, texts=None, size: int = MORE, **more):
    """(base tokenizer, extended tokenizer)."""
    target.mkdir(exist_ok=True)
    chosen = texts or list(tt.chinese()[:1500])
    made = Tokenizer(extend=str(base), vocab_size=size, **more)
    return extend_folder(chosen, made, target), read_tokenizer(target)


@pytest.fixture(scope="module", params=KINDS)
def pair(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return (*extend(base_of(request.param, folder / "base"), folder / "new"), folder / "new")


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def test_old_ids_keep_their_meaning_and_the_size_is_what_was_asked(pair):
    base, new, _ = pair
    assert len(new) == MORE
    vocab = new.get_vocab()
    assert all(vocab[name] == i for name, i in base.get_vocab().items())
    assert sorted(vocab.values()) == list(range(MORE))


def test_specials_and_template_are_the_bases(pair):
    base, new, _ = pair
    assert new.chat_template == base.chat_template
    assert (new.eos_token_id, new.pad_token_id) == (base.eos_token_id, base.pad_token_id)
    assert set(new.all_special_tokens) == set(base.all_special_tokens)


def test_text_without_new_tokens_is_encoded_as_before(pair):
    base, new, _ = pair
    unchanged = 0
    for text in [*tt.english(300, seed=9), *LONG, *tt.chinese()[2000:2100]]:
        before, after = ids_of(base, text), ids_of(new, text)
        if max(after, default=0) < len(base):
            assert after == before
            unchanged += 1
        else:
            assert len(after) <= len(before)
        assert new.decode(after) == text
    assert unchanged >= 250


def test_chinese_takes_fewer_tokens(pair):
    base, new, _ = pair
    held_out = tt.chinese()[5000:5200]
    before = sum(len(ids_of(base, t)) for t in held_out)
    after = sum(len(ids_of(new, t)) for t in held_out)
    assert after < 0.6 * before


def test_auto_tokenizer_gives_the_same_ids(pair):
    _, new, folder = pair
    again = AutoTokenizer.from_pretrained(folder)
    assert again.is_fast
    assert [ids_of(again, t) for t in LONG] == [ids_of(new, t) for t in LONG]
    assert not (folder / "tokenizer.model").exists()  # it would not know the new tokens


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=40))
def test_every_string_survives(pair, text):
    assert pair[1].decode(ids_of(pair[1], text)) == text


@pytest.mark.parametrize("kind", ["byte_bpe", "bpe"])
def test_a_new_token_undone_is_what_the_base_gives(kind, tmp_path):
    base = read_tokenizer(base_of(kind, tmp_path))
    words = Counter({"酒店": 9, "酒店很好": 5, " room": 7, " roomroom": 6})
    if kind == "byte_bpe":
        step = base.backend_tokenizer.pre_tokenizer
        split = {w: [p for p, _ in step.pre_tokenize_str(w)] for w in words}
        words = Counter({p: words[w] for w, parts in split.items() for p in parts})
    made = Tokenizer(extend="base", vocab_size=SIZE + 4, min_frequency=5)
    _, new = extend_backend(base.backend_tokenizer, words, made)
    assert list(new.parts) == [SIZE, SIZE + 1, SIZE + 2, SIZE + 3]
    for number, name in zip(new.parts, new.names, strict=True):
        text = base.backend_tokenizer.decoder.decode([name])
        if "\ufffd" not in text:
            assert new.parts[number] == ids_of(base, text), name


def test_merges_follow_the_counts(tmp_path):
    # "ab" 6 times, then "abc" 4 times, then nothing else 4 times.
    base = read_tokenizer(base_of("byte_bpe", tmp_path))
    words = Counter({"QZ": 2, "QZX": 4})
    tree, new = extend_backend(
        base.backend_tokenizer, words, Tokenizer(extend="b", vocab_size=SIZE + 2, min_frequency=4)
    )
    assert new.names == ["QZ", "QZX"]
    assert tree["model"]["merges"][-2:] == [["Q", "Z"], ["QZ", "X"]]
    with pytest.raises(UserError, match=f"at most {SIZE + 2} entries") as caught:
        extend_backend(
            base.backend_tokenizer, words, Tokenizer(extend="b", vocab_size=500, min_frequency=4)
        )
    assert caught.value.field == "tokenizer.vocab_size"


def test_a_size_that_adds_nothing_is_refused(tmp_path):
    base = base_of("byte_bpe", tmp_path / "base")
    with pytest.raises(UserError, match=f"not above the {SIZE} entries") as caught:
        extend(base, tmp_path / "new", size=SIZE)
    assert caught.value.field == "tokenizer.vocab_size"
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no fast tokenizer"):
        extend(tmp_path / "empty", tmp_path / "new")


def test_a_byte_level_base_learns_the_bytes_that_it_lacks(tmp_path):
    # SmolLM2's vocabulary lacks 21 of the 256 and drops such characters without a word.
    folder = base_of("byte_bpe", tmp_path / "base")
    tree = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    names = sorted(tree["model"]["vocab"], key=tree["model"]["vocab"].get)
    step = read_tokenizer(folder).backend_tokenizer.pre_tokenizer
    lost = step.pre_tokenize_str("\x01")[0][0]
    kept = [n for n in names if n != lost]
    tree["model"]["vocab"] = {n: i for i, n in enumerate(kept)}
    tree["added_tokens"] = [t | {"id": kept.index(t["content"])} for t in tree["added_tokens"]]
    (folder / "tokenizer.json").write_text(json.dumps(tree), encoding="utf-8")
    base, new = extend(folder, tmp_path / "new")
    assert base.decode(ids_of(base, "a\x01b")) == "ab"
    assert new.decode(ids_of(new, "a\x01b")) == "a\x01b"


def test_utf8_symbols_are_the_bytes_of_utf8():
    # 256 without C0, C1 and F5 to FF.
    assert len(utf8_symbols()) == 256 - 2 - 11


def test_own_symbols_are_added_too(tmp_path):
    base = base_of("byte_bpe", tmp_path / "base")
    _, new = extend(base, tmp_path / "new", control_symbols=["<|t|>"], user_defined_symbols=["qqx"])
    assert len(new) == MORE
    assert ids_of(new, "a<|t|>qqx")[1:] == [MORE - 2, MORE - 1]
    assert new.decode(ids_of(new, "a<|t|>b"), skip_special_tokens=True) == "ab"


def test_added_tokens_outside_the_model_keep_their_ids(tmp_path):
    # As in Qwen2: special tokens are numbered after the model's own vocabulary.
    folder = base_of("byte_bpe", tmp_path / "base")
    plain = read_tokenizer(folder)
    plain.add_tokens(["<late>"])
    plain.save_pretrained(folder)
    base, new = extend(folder, tmp_path / "new")
    assert base.convert_tokens_to_ids("<late>") == SIZE
    assert ids_of(new, "x<late>y")[1] == SIZE
    assert len(new) == MORE


def test_a_base_that_prefers_whole_words_to_merges(tmp_path):
    # As Llama 3 does.
    folder = base_of("byte_bpe", tmp_path / "base")
    tree = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    tree["model"]["ignore_merges"] = True
    (folder / "tokenizer.json").write_text(json.dumps(tree), encoding="utf-8")
    base, new = extend(folder, tmp_path / "new")
    for text in [*LONG, *tt.chinese()[2000:2050]]:
        assert new.decode(ids_of(new, text)) == text
        assert len(ids_of(new, text)) <= len(ids_of(base, text))


def test_a_wordpiece_base_gets_whole_words(tmp_path):
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(set("abcdefghijklmnopqrstuvwxyz"))
    names = ["[UNK]", "[PAD]", *letters, *(f"##{c}" for c in letters)]
    model = models.WordPiece({n: i for i, n in enumerate(names)}, unk_token="[UNK]")
    backend = Backend(model)
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]", eos_token="[PAD]"
    ).save_pretrained(tmp_path / "base")
    texts = ["hotel room"] * 5 + ["room"] * 5
    base, new = extend(tmp_path / "base", tmp_path / "new", texts, size=56)
    assert len(ids_of(base, "hotel room")) == 9
    assert new.convert_ids_to_tokens(ids_of(new, "hotel room rooms")) == [
        "hotel", "room", "r", "##o", "##o", "##m", "##s",
    ]  # fmt: skip


# Embeddings


def model_of(kind: str, size: int, **more):
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
             "num_attention_heads": 2, "num_key_value_heads": 1, "bos_token_id": None,
             "eos_token_id": 0, "pad_token_id": 1, **more}  # fmt: skip
    if kind == "gpt2":
        shape = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 128, **more}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, vocab_size=size, **shape))


@pytest.mark.parametrize(
    ("kind", "tied"), [("llama", True), ("llama", False), ("gpt2", True), ("qwen2", False)]
)
def test_rows_of_new_tokens_are_means_and_old_rows_stay(kind, tied):
    model = model_of(kind, 6, tie_word_embeddings=tied)
    before = [t.weight.detach().clone() for t in
              (model.get_input_embeddings(), model.get_output_embeddings())]  # fmt: skip
    add_rows(model, {6: [2, 4], 7: [3], 8: []})
    assert model.config.vocab_size == 9
    for table, old in zip(
        (model.get_input_embeddings(), model.get_output_embeddings()), before, strict=True
    ):
        assert torch.equal(table.weight[:6], old)
        assert torch.allclose(table.weight[6], (old[2] + old[4]) / 2)
        assert torch.equal(table.weight[7], old[3])
        assert torch.allclose(table.weight[8], old.sum(0) / 6)
    assert torch.equal(*before) is tied


def test_rows_that_a_base_has_to_spare_are_set_too():
    model = model_of("llama", 10, tie_word_embeddings=True)
    old = model.get_input_embeddings().weight.detach().clone()
    add_rows(model, {6: [1, 2], 7: [5]})
    assert model.config.vocab_size == 10
    assert torch.allclose(model.get_input_embeddings().weight[6], (old[1] + old[2]) / 2)
    assert torch.equal(model.get_input_embeddings().weight[8:], old[8:])


def nats(model, tokenizer, texts) -> float:
    """Loss per character."""
    total, characters = 0.0, 0
    with torch.no_grad():
        for text in texts:
            ids = torch.tensor([[tokenizer.eos_token_id, *ids_of(tokenizer, text)]])
            total += model(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
            characters += len(text)
    return total / characters


def test_means_start_lower_than_random_rows(tmp_path):
    folder = base_of("byte_bpe", tmp_path / "base")
    tokenizer = read_tokenizer(folder)
    model = model_of("llama", SIZE, hidden_size=48, tie_word_embeddings=True)
    model.config.eos_token_id = tokenizer.eos_token_id
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    texts = list(tt.chinese()[:400])
    stream = list(itertools.chain.from_iterable(ids_of(tokenizer, t) for t in texts))
    rows = torch.tensor(stream[: 96 * 128]).reshape(96, 128)
    for step in range(60):
        batch = rows[(8 * step) % 96 :][:8]
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    model.save_pretrained(folder)
    extend(folder, tmp_path / "new", texts, size=1300)
    extended = AutoModelForCausalLM.from_pretrained(tmp_path / "new")
    new = read_tokenizer(tmp_path / "new")
    assert extended.config.vocab_size == 1300
    old = model.get_input_embeddings().weight
    weight = extended.get_input_embeddings().weight
    assert torch.equal(weight[:SIZE], old)
    held_out = tt.chinese()[5000:5020]
    with_means = nats(extended, new, held_out)
    with torch.no_grad():
        spread = torch.randn_like(weight[SIZE:]) * old.std()
        weight[SIZE:] = spread
    assert with_means < nats(extended, new, held_out) < float("inf")


def test_a_base_without_weights_gives_a_tokenizer_alone(pair):
    assert not (pair[2] / "config.json").exists()


def test_a_reward_model_or_an_adapter_is_no_base(tmp_path):
    folder = base_of("byte_bpe", tmp_path / "base")
    shape = AutoConfig.for_model("llama", architectures=["LlamaForSequenceClassification"])
    shape.save_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="no causal language model"):
        extend(folder, tmp_path / "new")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="is an adapter"):
        extend(tmp_path / "adapter", tmp_path / "new")
