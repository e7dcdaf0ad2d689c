"""SentencePiece BPE and unigram, and the exact fast tokenizer of a model that it trained.

The obvious conversions fail without a word (an empty vocabulary, other ids, lost spaces). What is
exact: no normalisation and no dummy prefix in training; a BPE's merges in the order of its pieces'
scores; and spaces that are spaces in the vocabulary, where sentencepiece writes U+2581. That
character then is one like others, which becomes bytes, and decode(encode(text)) == text holds for
it too; ids equal those of sentencepiece on every text without it and without special tokens.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from align.config_tokenizer import EOS, PAD, SPACE_MARK, SPECIALS, TURN_END, TURN_START, UNKNOWN
from align.data.tokenizer_parts import (
    Learned,
    add_symbols,
    counted,
    no_text,
    sampled,
    too_large,
    too_small,
    trainable,
    wrap,
)

if TYPE_CHECKING:
    from align.config_schema import Tokenizer

# Longest text that sentencepiece takes, bytes; a longer one is cut.
LONGEST = 4192
# The result of unigram training depends on it, so it does not follow the machine.
THREADS = 8
# Scores are rounded to multiples of this: sums of them then are exact in 32 bits (sentencepiece)
# and 64 bits (tokenizers) alike up to 65,536, and paths of equal score stay equal in both.
SCORE_STEP = 2.0**-8
_COMPARED, _LONG = 1000, 10_000
_HIGH = re.compile(r"Vocabulary size too high .*value <= (\d+)")
_SMALL = re.compile(r"smaller than required_chars\. \d+ vs (\d+)")


def learn(
    texts: Iterable[str],
    settings: Tokenizer,
    *,
    seed: int,
    model_max_length: int,
    say: Callable[[str], None] | None = None,
) -> Learned:
    """Train a model and convert it; `tokenizer.model` and `tokenizer.vocab` are its files.

    Raises UserError for texts that are empty or do not fit vocab_size, RuntimeError should the
    conversion give other ids than sentencepiece on the first texts.
    """
    import sentencepiece

    first: list[str] = []
    stream = _stream(counted(sampled(texts, settings.sample_sentences, seed), say), first)
    proto = _train(stream, settings)
    if settings.kind == "unigram":
        proto = round_scores(proto)
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(proto)
    tokenizer = convert(processor, settings, model_max_length)
    check_ids(tokenizer, processor, first)
    pieces = ((processor.IdToPiece(i), processor.GetScore(i)) for i in range(len(processor)))
    vocab = "".join(f"{piece}\t{score:g}\n" for piece, score in pieces)
    return Learned(tokenizer, {"tokenizer.model": proto, "tokenizer.vocab": vocab.encode()})


def _stream(texts: Iterable[str], first: list[str]) -> Iterator[str]:
    """Parts of the texts that sentencepiece takes; the first texts are kept in `first`."""
    for text in texts:
        if len(first) < _COMPARED:
            first.append(text[:_LONG])
        yield from trainable(text, LONGEST)


def _train(stream: Iterator[str], settings: Tokenizer) -> bytes:
    """The serialised model."""
    import sentencepiece

    # The trainer turns an exception of the iterator into one of its own.
    head = next(stream, None)
    if head is None:
        raise no_text()
    failed: list[BaseException] = []

    def guarded() -> Iterator[str]:
        try:
            yield head
            yield from stream
        except BaseException as error:
            failed.append(error)
            raise

    out = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=guarded(),
            model_writer=out,
            model_type=settings.kind,
            vocab_size=settings.vocab_size,
            character_coverage=settings.character_coverage,
            byte_fallback=settings.byte_fallback,
            split_digits=settings.split_digits,
            max_sentencepiece_length=settings.max_token_length,
            max_sentence_length=LONGEST,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            train_extremely_large_corpus=settings.kind == "unigram",
            eos_id=0, eos_piece=EOS, pad_id=1, pad_piece=PAD, bos_id=-1,
            unk_id=len(SPECIALS), unk_piece=UNKNOWN,
            control_symbols=[TURN_START, TURN_END, *settings.control_symbols],
            user_defined_symbols=settings.user_defined_symbols,
            num_threads=THREADS,
            minloglevel=3,
        )  # fmt: skip
    except RuntimeError as error:
        if failed:
            raise failed[0] from None
        raise _explained(error, settings.vocab_size) from error
    return out.getvalue()


def _explained(error: RuntimeError, asked: int) -> Exception:
    """The trainer's message in words of the configuration, where it is about the size."""
    if found := _HIGH.search(str(error)):
        return too_large(asked, int(found[1]))
    if found := _SMALL.search(str(error)):
        least = int(found[1])
        what = "the characters of tokenizer.character_coverage, bytes and special tokens take"
        return too_small(asked, least, f"{what} {least}")
    if "sentences_.empty()" in str(error):
        return no_text()
    return error


def round_scores(proto: bytes) -> bytes:
    """Return a serialised model with every piece's score rounded to `SCORE_STEP`, in place.

    The package's own message classes need a protobuf as new as the one they were made with, which
    other packages may not allow. A ModelProto holds its pieces as field 1, a piece its score as
    field 2, a 32-bit float (sentencepiece_model.proto).
    """
    out = bytearray(proto)
    for number, start, stop in _fields(proto, 0, len(proto)):
        if number == 1:
            for inner, at, _ in _fields(proto, start, stop):
                if inner == 2:
                    (score,) = struct.unpack_from("<f", proto, at)
                    struct.pack_into("<f", out, at, round(score / SCORE_STEP) * SCORE_STEP)
    return bytes(out)


def _fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(number, start, stop) of the fields of one protobuf message."""
    while at < end:
        tag, at = _varint(data, at)
        kind, start = tag & 7, at
        if kind == 0:
            _, at = _varint(data, at)
        elif kind == 2:
            size, start = _varint(data, at)
            at = start + size
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise ValueError(f"a protobuf field of kind {kind}")
        yield tag >> 3, start, at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def convert(processor: Any, settings: Tokenizer, model_max_length: int) -> Any:
    """Return the fast tokenizer of a model trained with the settings above."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders

    size = len(processor)
    names = [processor.IdToPiece(i).replace(SPACE_MARK, " ") for i in range(size)]
    # What a text is made of, as against names of bytes and special tokens.
    normal = [
        not (processor.IsControl(i) or processor.IsByte(i) or processor.IsUnknown(i))
        for i in range(size)
    ]
    own = set(settings.user_defined_symbols)
    plain = {i: name for i, name in enumerate(names) if normal[i] and name not in own}
    if settings.kind == "bpe":
        backend = Backend(_bpe(names, plain, settings))
    else:
        backend = Backend(_unigram(names, plain, processor, settings))
        reserved = [name for name, is_normal in zip(names, normal, strict=True) if not is_normal]
        backend.pre_tokenizer = _names_split(reserved)
    steps = [decoders.ByteFallback()] if settings.byte_fallback else []
    backend.decoder = decoders.Sequence([*steps, decoders.Fuse()])
    # With bytes nothing is unknown, and the text "<unk>" is a text.
    unknown = None if settings.byte_fallback else UNKNOWN
    add_symbols(backend, settings, unknown)
    return wrap(backend, model_max_length, settings.control_symbols, unknown)


def _bpe(names: list[str], plain: dict[int, str], settings: Tokenizer) -> Any:
    """A BPE whose merges are every way to put a piece together from two, in order of pieces.

    SentencePiece merges the two neighbours whose concatenation has the best score; pieces are
    numbered by score.
    """
    from tokenizers import models

    known = set(plain.values())
    merges = [
        (name[:cut], name[cut:])
        for _, name in sorted(plain.items())
        for cut in range(1, len(name))
        if name[:cut] in known and name[cut:] in known
    ]
    vocab = {name: i for i, name in enumerate(names)}
    return models.BPE(
        vocab=vocab,
        merges=merges,
        unk_token=UNKNOWN,
        fuse_unk=True,
        byte_fallback=settings.byte_fallback,
    )


def _unigram(names: list[str], plain: dict[int, str], processor: Any, settings: Tokenizer) -> Any:
    from tokenizers import models

    scores = {i: processor.GetScore(i) for i in plain}
    # The score of an unknown character follows from the lowest: names must not lower it.
    lowest = min(scores.values())
    vocab = [(name, scores.get(i, lowest)) for i, name in enumerate(names)]
    return models.Unigram(
        vocab=vocab, unk_id=names.index(UNKNOWN), byte_fallback=settings.byte_fallback
    )


def _names_split(reserved: list[str]) -> Any:
    """A pre-tokeniser that cuts every name of a byte or special token after its first character.

    `tokenizers` would read the text "<0x41>" as the byte, for a unigram model knows no kinds of
    pieces.
    """
    from tokenizers import Regex, pre_tokenizers

    tails: dict[str, set[str]] = {}
    for name in reserved:
        tails.setdefault(name[0], set()).add(name[1:])
    ways = (
        f"{re.escape(head)}(?={'|'.join(sorted(map(re.escape, rest)))})"
        for head, rest in sorted(tails.items())
    )
    return pre_tokenizers.Split(Regex("|".join(ways)), behavior="isolated")


def check_ids(tokenizer: Any, processor: Any, texts: Iterable[str]) -> None:
    """Raise RuntimeError for a text on which the two give different ids."""
    # The fast tokenizer reads the names of special tokens, sentencepiece never does.
    reserved = [SPACE_MARK, *tokenizer.all_special_tokens]
    for text in texts:
        if any(name in text for name in reserved):
            continue
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if ids != processor.EncodeAsIds(text):
            raise RuntimeError(f"the fast tokenizer differs from sentencepiece on {text[:80]!r}")
