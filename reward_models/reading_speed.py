"""Whether somebody had the time to read what they judged.

Seconds come from tools that measure them (Label Studio's ``lead_time``) and are kept in a group's
``meta["lead_time"]`` as {annotator: seconds}.

Most adults read English non-fiction at 175 to 300 words a minute, 238 on average and 183 aloud
(Brysbaert 2019, https://doi.org/10.1016/j.jml.2019.104047, 190 studies). Chinese is read aloud at
255 characters a minute (Trauzettel-Klosinski and Dietz 2012,
https://doi.org/10.1167/iovs.11-8284); by the same ratios silent reading is 332 on average and 418
for a fast reader. Twice the fast reader, 600 words and 840 characters a minute, is skimming.
"""

from __future__ import annotations

import re
from typing import Any

from align.records import PreferenceGroup

WORDS_A_MINUTE, CHARACTERS_A_MINUTE = 600, 840
UNNAMED = "(unnamed)"
# Ten years: a longer time is a mistake of a clock.
MAX_SECONDS = 10 * 365 * 86400

# Han characters and kana are read one by one, everything else by words.
_CHARACTER = re.compile(
    r"[\u3005-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)


def note_lead_time(meta: dict[str, Any], annotator: str | None, seconds: Any) -> None:
    """Keeps how long somebody worked on a group; what is no time > 0 is left out.

    Of several times of one annotator the longest counts: nobody is blamed for a correction.
    """
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        return
    if not 0 < seconds <= MAX_SECONDS:  # NaN and integers of 400 digits too
        return
    times, name = meta.setdefault("lead_time", {}), annotator or UNNAMED
    times[name] = max(float(seconds), times.get(name, 0.0))


def lead_times(group: PreferenceGroup) -> dict[str, float]:
    """{annotator: seconds} of a group."""
    found: Any = group.meta.get("lead_time")
    if not isinstance(found, dict):
        return {}
    clean: dict[str, Any] = {}
    for name, seconds in found.items():
        note_lead_time(clean, str(name), seconds)
    return clean.get("lead_time", {})


def seconds_to_skim(group: PreferenceGroup) -> float:
    """How long prompt and answers take at twice a fast reader's speed."""
    characters = words = 0
    for text in [m.content for m in group.prompt] + [c.text for c in group.candidates]:
        if text.isascii():
            words += len(text.split())
            continue
        rest, found = _CHARACTER.subn(" ", text)
        characters += found
        words += sum(any(map(str.isalnum, part)) for part in rest.split())
    return 60.0 * (words / WORDS_A_MINUTE + characters / CHARACTERS_A_MINUTE)
