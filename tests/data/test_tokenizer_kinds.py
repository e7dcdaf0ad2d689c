"""SentencePiece and byte-level tokenizers: exact text, the trainer's own ids, symbols, limits."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
import tokenizer_texts as tt

from align.config import UserError
from align.config_schema import Tokenizer
from align.data.tokenizer import learn_tokenizer, save_tokenizer
from align.data.tokenizer_parts import sampled, trainable

KINDS = ("bpe", "unigram", "byte_bpe", "char_bpe")
SYMBOLS = {"user_defined_symbols": ["<工具>", "酒店"], "control_symbols": ["<|tool|>"]}
HARD = [
    "  two  spaces\n\n\tand tabs\r\n", "罕见字：𠮷龘㐂", "\U0001f600\U0001f468\u200d\U0001f469",
    "<0x41><0xE4>", "<0x4", "e\u0301 vs é", "\ufeff\u200b\x00", "한국어 العربية हिन्दी",
    "▁", " ▁▁ a▁b ", "▅x▅", "Ġ ##", "\ufffd", "<unk>", "<s></s>", "<|im_end|", "|im_end|>",
    "哈哈哈哈哈哈 ------ 0000000",
]  # fmt: skip


def learn(kind: str, texts=None, **changes):
    values = {"kind": kind, "vocab_size": 3400, **({} if kind == "char_bpe" else SYMBOLS)}
    return learn_tokenizer(texts or tt.mixed(3000), Tokenizer(**{**values, **changes}))


@pytest.fixture(scope="module", params=KINDS)
def learned(request):
    return learn(request.param)


@pytest.fixture(scope="module")
def tokenizer(learned):
    return learned.tokenizer


def ids_of(tokenizer, text, **more):
    return tokenizer(text, add_special_tokens=False, verbose=False, **more)["input_ids"]


def there_and_back(tokenizer, text, **more):
    return tokenizer.decode(ids_of(tokenizer, text, **more), skip_special_tokens=False)


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=50))
@example("a<|im_end|>b<|tool|><工具>酒店的酒")
def test_every_string_survives(tokenizer, text):
    assert there_and_back(tokenizer, text) == text
    assert there_and_back(tokenizer, text, split_special_tokens=True) == text


@settings(max_examples=150, deadline=None)
@given(parts=st.lists(st.sampled_from([*HARD, "酒店", "good", " ", "▁", "\n"]), max_size=8))
def test_hard_pieces_survive_side_by_side(tokenizer, parts):
    text = "".join(parts)
    assert there_and_back(tokenizer, text) == text


@pytest.mark.parametrize("text", ["<0x41>", "<|im_end|>", "<|endoftext|>x", "<unk>", "<|pad|>"])
def test_names_of_tokens_are_text_where_specials_are_not_parsed(tokenizer, text):
    ids = ids_of(tokenizer, text, split_special_tokens=True)
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert len(ids) > 1
    assert not set(ids) & set(tokenizer.all_special_ids)


def test_special_tokens_keep_their_places(tokenizer):
    names = ["<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>"]
    assert tokenizer.convert_tokens_to_ids(names) == [0, 1, 2, 3]
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|endoftext|>", "<|pad|>")
    assert len(tokenizer) == 3400 == len(set(tokenizer.get_vocab().values()))
    assert ids_of(tokenizer, "a<|im_end|>")[-1] == 3


def test_digits_are_single(tokenizer):
    assert tokenizer.convert_ids_to_tokens(ids_of(tokenizer, "x2008"))[-4:] == ["2", "0", "0", "8"]


@pytest.mark.parametrize("kind", ["bpe", "unigram", "byte_bpe"])
def test_symbols_are_one_token_and_control_symbols_special(kind):
    tokenizer = learn(kind).tokenizer
    ids = ids_of(tokenizer, "去酒店<工具>吧<|tool|>")
    names = tokenizer.convert_ids_to_tokens(ids)
    assert [n for n in names if n in ("酒店", "<工具>", "<|tool|>")] == [
        "酒店",
        "<工具>",
        "<|tool|>",
    ]
    assert "<|tool|>" in tokenizer.all_special_tokens
    assert tokenizer.decode(ids, skip_special_tokens=True) == "去酒店<工具>吧"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("fallback", [True, False])
def test_ids_are_those_of_sentencepiece_on_10k_real_lines(kind, fallback):
    learned = learn(kind, vocab_size=4000, byte_fallback=fallback)
    theirs = sentencepiece.SentencePieceProcessor()
    theirs.LoadFromSerializedProto(learned.files["tokenizer.model"])
    lines = [*tt.chinese()[::4][:8000], *tt.english(2000, seed=5)]
    repeats = ["哈" * n + "！" * (9 - n) + "-" * n + "= = =" * n for n in range(9)]
    assert len(lines) == 10_000
    assert sum("\u2581" in line for line in lines) == 0
    for text in [*lines, *HARD[:4], *HARD[-1:], *repeats, "龘𠮷 x"]:
        assert ids_of(learned.tokenizer, text) == theirs.EncodeAsIds(text), text


def test_auto_tokenizer_reads_it_back_beside_a_model_too(learned, tmp_path):
    from transformers import AutoTokenizer, LlamaConfig

    save_tokenizer(learned, tmp_path)
    wanted = [ids_of(learned.tokenizer, t) for t in [*HARD, *tt.mixed(40)]]
    for beside in (None, LlamaConfig(vocab_size=3400)):
        if beside:
            beside.save_pretrained(tmp_path)
        again = AutoTokenizer.from_pretrained(tmp_path)
        assert again.is_fast
        assert again.model_max_length == 1024
        assert [ids_of(again, t) for t in [*HARD, *tt.mixed(40)]] == wanted


def test_the_model_and_its_pieces_lie_beside(tmp_path):
    learned = learn("bpe")
    save_tokenizer(learned, tmp_path)
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    assert len(theirs) == 3400
    first = (tmp_path / "tokenizer.vocab").read_text(encoding="utf-8").split("\n")[:5]
    assert [line.split("\t")[0] for line in first] == [
        "<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>", "<unk>",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_input_gives_the_same_files(kind, tmp_path):
    for name in ("a", "b"):
        save_tokenizer(learn(kind, sample_sentences=1500), tmp_path / name)
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert "tokenizer.json" in files
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_another_seed_draws_other_sentences():
    texts = [str(i) for i in range(1000)]
    first = list(sampled(texts, 50, seed=1))
    assert first == list(sampled(iter(texts), 50, seed=1))
    assert first != list(sampled(texts, 50, seed=2))
    assert len(set(first)) == 50
    assert first == sorted(first, key=int)
    assert list(sampled(texts[:9], 50, seed=1)) == texts[:9]


def test_every_text_is_equally_likely():
    # 200 draws of 5 out of 20: each text 50 times, standard deviation 6.1.
    hits = [0] * 20
    for seed in range(200):
        for text in sampled([str(i) for i in range(20)], 5, seed=seed):
            hits[int(text)] += 1
    assert sum(hits) == 1000
    assert all(25 < n < 75 for n in hits)


def test_a_line_longer_than_sentencepiece_takes_is_learned_from():
    # One line of 40 kB: sentencepiece alone would drop it and know no "zebra".
    long = "zebra " * 7000
    none = {"user_defined_symbols": [], "control_symbols": []}
    tokenizer = learn("bpe", [long, "abc"], vocab_size=272, **none).tokenizer
    assert " zebra" in tokenizer.get_vocab()


@given(text=st.text(max_size=80), limit=st.integers(8, 40))
def test_no_text_is_lost_in_parts(text, limit):
    parts = list(trainable(text, limit))
    assert all(0 < len(part.encode()) <= limit for part in parts)
    assert "".join(parts) == "".join(c for c in text if c not in "\u2581\u2585\0")


@pytest.mark.parametrize("kind", ["bpe", "unigram", "byte_bpe"])
def test_too_large_a_vocabulary_names_the_maximum(kind):
    texts = tt.english(60)
    more = {"user_defined_symbols": [], "control_symbols": []}
    with pytest.raises(UserError, match="at most") as caught:
        learn(kind, texts, vocab_size=50_000, **more)
    assert caught.value.field == "tokenizer.vocab_size"
    most = int(caught.value.reason.split("at most ")[1].split()[0])
    assert len(learn(kind, texts, vocab_size=most, **more).tokenizer) == most


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_too_small_a_vocabulary_names_the_minimum(kind):
    with pytest.raises(UserError, match=r"characters of tokenizer.character_coverage.*take \d+"):
        learn(kind, vocab_size=300)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_no_text_is_an_error(kind, texts):
    with pytest.raises(UserError, match="no text") as caught:
        learn_tokenizer(texts, Tokenizer(kind=kind, vocab_size=400))
    assert caught.value.field == "data.text"


def test_an_error_in_the_corpus_is_the_readers_own():
    def broken():
        yield "good"
        raise UserError("data.text", "t.txt", "is damaged")

    for kind in KINDS:
        with pytest.raises(UserError, match="is damaged"):
            learn_tokenizer(broken(), Tokenizer(kind=kind, vocab_size=400))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"user_defined_symbols": ["a b"]}, "tokenizer.user_defined_symbols.0"),
        ({"user_defined_symbols": ["x", "x"]}, "tokenizer.user_defined_symbols.1"),
        ({"control_symbols": ["<0x0A>"]}, "tokenizer.control_symbols.0"),
        ({"control_symbols": ["<|im_end|>"]}, "tokenizer.control_symbols.0"),
        ({"control_symbols": ["x"]}, "tokenizer.control_symbols.0"),
        ({"user_defined_symbols": [""]}, "tokenizer.user_defined_symbols.0"),
        ({"kind": "char_bpe", "control_symbols": ["<c>"]}, "tokenizer.control_symbols"),
    ],
)
def test_symbols_that_cannot_be(changes, field):
    with pytest.raises(UserError) as caught:
        learn_tokenizer(["text"], Tokenizer(**changes))
    assert caught.value.field == field


def test_without_the_package_the_install_line_is_said(monkeypatch):
    from align import config_tokenizer

    monkeypatch.setattr(config_tokenizer, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'align\[data\]'"):
        config_tokenizer.check_tokenizer(Tokenizer(kind="unigram"))
    config_tokenizer.check_tokenizer(Tokenizer(kind="byte_bpe"))


def test_unknown_characters_without_bytes():
    tokenizer = learn("bpe", byte_fallback=False).tokenizer
    assert tokenizer.unk_token == "<unk>"
    assert tokenizer.convert_ids_to_tokens(ids_of(tokenizer, "龘龘")) == ["<unk>"]
    assert "<0x41>" not in tokenizer.get_vocab()


def test_the_template_marks_what_the_assistant_said():
    tokenizer = learn_tokenizer(
        tt.mixed(600), Tokenizer(vocab_size=1800, character_coverage=0.98), chat_template="chatml"
    ).tokenizer
    turns = [{"role": "user", "content": "你好 hi"}, {"role": "assistant", "content": "好的 ok"}]
    out = tokenizer.apply_chat_template(turns, return_dict=True, return_assistant_tokens_mask=True)
    pairs = zip(out["input_ids"], out["assistant_masks"], strict=True)
    said = [i for i, mask in pairs if mask]
    assert tokenizer.decode(said) == "好的 ok<|im_end|>"


def test_a_merge_never_makes_a_symbol_a_second_token():
    # "good" would be learned as a merge: it is the user's symbol already.
    tokenizer = learn("byte_bpe", user_defined_symbols=["good"], control_symbols=[]).tokenizer
    tree = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    assert ["g", "ood"] not in tree["merges"]
    assert tree["vocab"]["good"] == 4
    assert ids_of(tokenizer, "good") == [4]
