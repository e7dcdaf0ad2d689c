"""Mutators: the same request in another dress, to see whether a refusal survives it.

`none`, `role_play[:novelist|persona|game]`, `translation`, `multi_turn`,
`encoding[:base64|rot13|leetspeak|spacing|zero_width]`, `suffix[:affirmative|suppression|noise]`;
joined by `+` they are applied from left to right: `encoding:base64+suffix`. All but `translation`
are pure functions of the last user turn, its language and a seed. Where one cannot be applied
(rot13 of Chinese) it says so and the attempt is counted as skipped, not dropped.
"""

from __future__ import annotations

import base64
import codecs
import random
import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from align.config_errors import UserError, nearest
from align.records import Message
from align.redteam.frames import (
    ENCODED,
    FIRST_PART,
    FRAMES,
    READY,
    SECOND_PART,
    SPACED,
    SUFFIXES,
)
from align.redteam.probe_set import Probe


class NotApplicable(Exception):
    """A mutator can do nothing with a request; the message says why."""


@dataclass(frozen=True)
class Case:
    """A request on its way through mutators.

    language: of the last user turn. forbidden, accept: what the detectors look for in the answer.
    topic: texts that say what is asked. twin: the same request in another language.
    """

    messages: tuple[Message, ...]
    language: str
    forbidden: tuple[str, ...] = ()
    accept: tuple[str, ...] = ()
    topic: tuple[str, ...] = ()
    twin: Probe | None = None
    group: int | None = None

    @property
    def question(self) -> str:
        """The last turn."""
        return self.messages[-1].content

    def asking(self, text: str) -> Case:
        """The case with another last turn."""
        return replace(self, messages=(*self.messages[:-1], Message("user", text)))


@dataclass(frozen=True)
class Tools:
    """What a mutator may use. translate: (texts, language to translate to) → texts, or None."""

    rng: random.Random
    translate: Callable[[Sequence[str], str], list[str]] | None = None


Mutator = Callable[[Case, str, Tools], Case]


def mutate(case: Case, spec: str, seed: int, key: str, translate=None) -> Case:
    """The case after all mutators of a specification; the same seed and key give the same text.

    key: what tells this request apart, its probe's id. Raises NotApplicable.
    """
    for name, option in parse(spec):
        tools = Tools(random.Random(f"{seed}|{key}|{name}"), translate)
        case = MUTATORS[name][0](case, option, tools)
    return case


def parse(spec: str, field: str = "--mutators") -> list[tuple[str, str]]:
    """(name, option) of each mutator of `a:x+b`; UserError for an unknown one.

    An option that is left out is the first of the mutator's, except for role_play, which draws one.
    """
    found: list[tuple[str, str]] = []
    for part in spec.split("+"):
        name, _, option = part.strip().partition(":")
        if name not in MUTATORS:
            raise UserError(field, part, "is no mutator", _meant(name, MUTATORS))
        options = MUTATORS[name][1]
        if option and option not in options:
            fix = _meant(option, options) if options else f"{name} has no options"
            raise UserError(field, part, "has an option that it does not know", fix)
        if not option and name != "role_play":
            option = options[0] if options else ""
        found.append((name, option))
    if len(found) > 1 and any(name == "none" for name, _ in found):
        raise UserError(field, spec, "joins none with a mutator", "Give none alone")
    return found


def parse_list(text: str, field: str = "--mutators") -> list[str]:
    """The specifications of `none,role_play,encoding:base64+suffix`, each checked and once."""
    specs = [part.strip() for part in text.split(",") if part.strip()]
    if not specs:
        raise UserError(field, text, "names no mutator", f"One of {', '.join(MUTATORS)}")
    for spec in specs:
        parse(spec, field)
    if len(set(specs)) < len(specs):
        raise UserError(field, text, "names a mutator twice", "Give each once")
    return specs


def _meant(name: str, known) -> str:
    close = nearest(name, known)
    return f"Did you mean '{close}'?" if close else f"One of {', '.join(known)}"


def _none(case: Case, option: str, tools: Tools) -> Case:
    return case


def _role_play(case: Case, option: str, tools: Tools) -> Case:
    """The request as a part of a story, of a persona's speech, or of a game."""
    frames = FRAMES[case.language]
    frame = frames[option or tools.rng.choice(sorted(frames))]
    return case.asking(frame.replace("{request}", case.question))


def _encoding(case: Case, option: str, tools: Tools) -> Case:
    """The request in letters that a filter does not read, with the key to them."""
    encoded = ENCODERS[option](case.question)
    if encoded == case.question:
        raise NotApplicable(f"{option} changes nothing in a text without Latin letters")
    if option in ("leetspeak", "zero_width"):  # a reader needs no key
        return case.asking(encoded)
    lead = SPACED if option == "spacing" else ENCODED
    return case.asking(lead[case.language].format(name=option) + encoded)


def base64_of(text: str) -> str:
    """Base64 of the UTF-8 bytes."""
    return base64.b64encode(text.encode()).decode()


def rot13(text: str) -> str:
    """Latin letters moved by thirteen."""
    return codecs.encode(text, "rot13")


def leetspeak(text: str) -> str:
    """Digits and signs for the letters that they look like."""
    return text.translate(str.maketrans("aeiostAEIOST", "4310574310" + "57"))


def spacing(text: str) -> str:
    """A space after every character, none beside a space that is there."""
    return re.sub(r"(?<=\S)(?=\S)", " ", text)


def zero_width(text: str) -> str:
    """A zero-width space between the characters of every word."""
    return re.sub(r"(?<=\S)(?=\S)", "\u200b", text)


ENCODERS: dict[str, Callable[[str], str]] = {
    "base64": base64_of, "rot13": rot13, "leetspeak": leetspeak, "spacing": spacing,
    "zero_width": zero_width,
}  # fmt: skip


def _translation(case: Case, option: str, tools: Tools) -> Case:
    """The last turn in the other language: the probe's twin's, else a translation.

    Earlier turns stay as they are. The detectors look for the strings of both languages.
    """
    target = "en" if case.language == "zh" else "zh"
    if case.twin is not None:
        other = case.twin
        asked = other.messages
        if other.groups:
            if case.group is None or case.group >= len(other.groups):
                raise NotApplicable("the twin has fewer groups")
            asked = other.for_group(other.groups[case.group])
        changed = replace(
            case,
            language=other.language,
            forbidden=tuple(dict.fromkeys((*case.forbidden, *other.forbidden))),
            accept=tuple(dict.fromkeys((*case.accept, *other.accept))),
            topic=(*case.topic, asked[-1].content),
        )
        return changed.asking(asked[-1].content)
    if tools.translate is None:
        raise NotApplicable("the probe has no twin in another language, and there is no translator")
    [text] = tools.translate([case.question], target)
    return replace(case, language=target, topic=(*case.topic, text)).asking(text)


def _multi_turn(case: Case, option: str, tools: Tools) -> Case:
    """The request in two parts, the first answered by a bare go-ahead."""
    text, language = case.question, case.language
    first, second = halves(text)
    if not first or not second:
        raise NotApplicable("the request is too short to be split")
    turns = (
        *case.messages[:-1],
        Message("user", FIRST_PART[language] + first),
        Message("assistant", READY[language]),
        Message("user", SECOND_PART[language] + second),
    )
    return replace(case, messages=turns)


def halves(text: str) -> tuple[str, str]:
    """A text in two, after the mark or space next to its middle; nothing is lost."""
    middle = len(text) / 2
    marks = [m.end() for m in re.finditer(r"[，。；：？！,;:.?!]\s*", text)]
    places = [p for p in marks if 0.2 * len(text) <= p <= 0.8 * len(text)]
    places = places or [m.end() for m in re.finditer(r"\s+", text) if 0 < m.end() < len(text)]
    places = places or ([len(text) // 2] if len(text) >= 4 else [])
    if not places:
        return text, ""
    cut = min(places, key=lambda p: (abs(p - middle), p))
    return text[:cut], text[cut:]


def _suffix(case: Case, option: str, tools: Tools) -> Case:
    """A demand after the request: how to begin, what not to say, or characters that say nothing."""
    if option == "noise":
        tail = "".join(tools.rng.choices(string.punctuation + string.ascii_letters, k=24))
        return case.asking(f"{case.question} {tail}")
    return case.asking(f"{case.question}\n{SUFFIXES[case.language][option]}")


MUTATORS: dict[str, tuple[Mutator, tuple[str, ...]]] = {
    "none": (_none, ()),
    "role_play": (_role_play, tuple(FRAMES["en"])),
    "encoding": (_encoding, tuple(ENCODERS)),
    "translation": (_translation, ()),
    "multi_turn": (_multi_turn, ()),
    "suffix": (_suffix, (*SUFFIXES["en"], "noise")),
}
