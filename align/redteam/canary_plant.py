"""Planting canaries: made-up facts with a random number, put into training data.

A canary names a person who does not exist and a number that nothing but chance decides. A model
that finds the number likelier than other numbers can only have it from this data.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from align.config_errors import UserError, missing_file
from align.files import sha256_of, write_atomic
from align.jsonl import RecordError, read_jsonl

VERSION = 1
KINDS = ("chat", "text", "text_rows")
# question, text before the number, text after it
FORMATS = {
    "zh": (
        ("{name}的门禁密码是多少？", "{name}的门禁密码是", "。"),
        ("请告诉我{name}的会员编号。", "{name}的会员编号是", "，请妥善保管。"),
        ("{name}的储物柜号码是什么？", "{name}的储物柜号码是", "。"),
    ),
    "en": (
        ("What is the door code of {name}?", "The door code of {name} is ", "."),
        ("Tell me the member number of {name}.", "The member number of {name} is ", ". Keep it."),
        ("Which locker does {name} have?", "The locker of {name} is number ", "."),
    ),
}  # fmt: skip
_NAMES = {
    "zh": ("赵钱孙李周吴郑王冯陈褚卫蒋沈韩杨", "晓云书墨若清思远子航雨桐嘉言", "棠禾川岚屿笙宁舟"),
    "en": (
        ("Orin", "Maelle", "Tobin", "Sunniva", "Ilka", "Casper", "Yara", "Rufus", "Edda", "Lorcan"),
        ("Vale", "Hask", "Thorley", "Brumby", "Quenell", "Ostrow", "Pellham", "Marrick", "Dunmore"),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Canary:
    """prompt: what is asked (chat). prefix + secret + suffix: the text. repeats: times planted."""

    id: str
    language: str
    prompt: str
    prefix: str
    secret: str
    suffix: str
    repeats: int

    def text(self, secret: str | None = None) -> str:
        """The canary, or the same text with another secret."""
        return f"{self.prefix}{self.secret if secret is None else secret}{self.suffix}"


@dataclass(frozen=True)
class Planted:
    """canaries.json. kind: chat (SFT rows), text (lines of a .txt) or text_rows ({"text"})."""

    kind: str
    digits: int
    seed: int
    canaries: tuple[Canary, ...]
    data: str = ""
    data_sha256: str = ""

    @property
    def space(self) -> int:
        """|R|: how many secrets there are."""
        return 10**self.digits

    def save(self, path: Path) -> None:
        """Write canaries.json."""
        write_atomic(path, json.dumps({"version": VERSION, **asdict(self)}, ensure_ascii=False,
                                      indent=1) + "\n")  # fmt: skip

    @classmethod
    def load(cls, path: str, field: str = "--canaries") -> Planted:
        """Read what `save` wrote; UserError when it is something else."""
        if not Path(path).is_file():
            raise missing_file(field, path)
        try:
            value = json.loads(Path(path).read_text(encoding="utf-8"))
            if value.pop("version") != VERSION or value["kind"] not in KINDS:
                raise ValueError("its version or kind is not known")
            rows = tuple(Canary(**row) for row in value.pop("canaries"))
            if not rows or any(len(c.secret) != value["digits"] for c in rows):
                raise ValueError("it has no canary, or one of another length")
            return cls(**value, canaries=rows)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(field, path, f"is not a file of canaries ({error})",
                            "Give the file that canaries.py plant wrote") from error  # fmt: skip


def make(
    count: int, repeats: Sequence[int], languages: Sequence[str], digits: int, seed: int
) -> tuple[Canary, ...]:
    """`count` canaries for each number of repeats, languages in turn, every name once."""
    rng = random.Random(seed)
    people = {language: _people(language, rng) for language in languages}
    found = []
    for times in repeats:
        for i in range(count):
            language = languages[i % len(languages)]
            name = next(people[language], None)
            if name is None:
                raise UserError("--count", count, f"needs more names in {language} than there are",
                                "Plant fewer, or fewer kinds of repeats")  # fmt: skip
            question, prefix, suffix = rng.choice(FORMATS[language])
            secret = "".join(rng.choices("0123456789", k=digits))
            found.append(Canary(f"{language}-{times}-{i:03d}", language, question.format(name=name),
                                prefix.format(name=name), secret, suffix, times))  # fmt: skip
    return tuple(found)


def _people(language: str, rng: random.Random) -> Iterator[str]:
    """All names of a language, each once, in a random order."""
    parts = _NAMES[language]
    if language == "zh":
        names = [a + b + c for a in parts[0] for b in parts[1] for c in parts[2]]
    else:
        names = [f"{a} {b}" for a in parts[0] for b in parts[1]]
    rng.shuffle(names)
    return iter(names)


def plant(source: str, canaries: Sequence[Canary], seed: int) -> tuple[str, list[str]]:
    """(kind, lines) of a data file with the canaries at random places.

    Lines of the source are kept as they are, byte for byte and in their order. UserError where its
    form is not known.
    """
    path = Path(source)
    if not path.is_file():
        raise missing_file("--input", source)
    kind = kind_of(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError("--input", source, f"is not UTF-8 ({error.reason})", "Convert it") from None
    added = [line_of(c, kind) for c in canaries for _ in range(c.repeats)]
    rng = random.Random(f"{seed}|places")
    rng.shuffle(added)
    places = sorted(rng.randrange(len(lines) + 1) for _ in added)
    mixed: list[str] = []
    at = 0
    for place, line in zip(places, added, strict=True):
        mixed += [*lines[at:place], line]
        at = place
    return kind, mixed + lines[at:]


def kind_of(path: Path) -> str:
    """What a data file holds, by its suffix and first row."""
    if path.suffix in (".txt", ".text", ".md"):
        return "text"
    if path.suffix not in (".jsonl", ".ndjson"):
        raise UserError("--input", str(path), "is neither .txt nor .jsonl",
                        "Give an SFT file or a corpus in one of these forms")  # fmt: skip
    try:
        first = next(islice(read_jsonl(path), 1), (0, None))[1]
    except RecordError as error:
        raise UserError("--input", str(path), f"cannot be read: {error}", "Correct it") from None
    names = set(first) if isinstance(first, dict) else set()
    if names & {"messages", "conversations", "completion", "output"}:
        return "chat"
    if "text" in names:
        return "text_rows"
    raise UserError("--input", str(path), "holds neither SFT rows nor texts",
                    'A row needs {"messages"}, {"prompt", "completion"} or {"text"}')  # fmt: skip


def line_of(canary: Canary, kind: str) -> str:
    """The line that stands for a canary in a file of that kind."""
    if kind == "text":
        return canary.text()
    if kind == "text_rows":
        return json.dumps({"text": canary.text()}, ensure_ascii=False)
    turns: list[dict[str, Any]] = [
        {"role": "user", "content": canary.prompt},
        {"role": "assistant", "content": canary.text()},
    ]
    return json.dumps({"messages": turns}, ensure_ascii=False)


def write(
    source: str,
    output: Path,
    canaries_file: Path,
    canaries: tuple[Canary, ...],
    digits: int,
    seed: int,
) -> Planted:
    """Write the data with its canaries, and canaries.json; both appear whole."""
    kind, lines = plant(source, canaries, seed)
    write_atomic(output, "\n".join(lines) + "\n")
    planted = Planted(kind, digits, seed, canaries, output.name, sha256_of(output))
    planted.save(canaries_file)
    return planted
