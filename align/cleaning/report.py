"""report.html of a cleaning run: the funnel, lengths, languages, and what every rule changed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.cleaning.counting import Counting, megabytes, named
from align.cleaning.settings import Settings
from align.report import charts
from align.report.page import sample_store, write_page
from align.report.verdict import Verdict

if TYPE_CHECKING:
    from align.cleaning.pipeline import Result

# Before this share of the documents has gone, a rule is no surprise.
_MUCH = 0.2
_INPUTS = 200


def write_report(path: Path, settings: Settings, result: Result) -> None:
    """Write the page; it opens offline."""
    counting = result.counting
    splits = result.index["splits"]
    shown = {k: v["documents"] for k, v in splits.items() if v["documents"]}
    write_page(
        path,
        title="Cleaning report",
        subtitle=f"{named(result.index['inputs'])} · {result.seconds:.0f} s",
        verdict=_verdict(counting),
        stats=[
            ("documents read", charts.number(counting.read.documents)),
            ("documents kept", charts.number(counting.kept.documents)),
            ("read", megabytes(counting.read.bytes)),
            ("kept", megabytes(counting.kept.bytes)),
            *((f"in {name}", charts.number(n)) for name, n in shown.items()),
        ],
        table=_funnel(counting),
        sections=_sections(counting),
        samples=_samples(result),
        blocks=[b for b in (_repairs(counting), _files(counting), _sources(counting),
                            _settings(settings)) if b],
        footer="Rules and their limits are explained in docs/data.md.",
    )  # fmt: skip


def _verdict(counting: Counting) -> Verdict:
    read, kept = counting.read, counting.kept
    share = kept.documents / max(1, read.documents)
    findings = [
        ("warn", f"{reason} took {t.documents / read.documents:.0%} of the documents: see what "
         "went, and loosen the rule if it should have stayed")
        for reason, t in counting.dropped.items()
        if t.documents > _MUCH * read.documents
    ]  # fmt: skip
    findings += [("warn", f"{len(names)} files: {reason}, e.g. {names[0]}")
                 for reason, names in counting.files.items()]  # fmt: skip
    found = sum(counting.pii.values())
    if found:
        findings.append(("info", f"{found} pieces of personal data were replaced"))
    headline = f"{kept.documents} of {read.documents} documents stay ({share:.1%})"
    verdict = Verdict(headline, "good")
    for level, text in findings:
        verdict.add(level, text)
    return verdict


def _funnel(counting: Counting) -> dict[str, Any]:
    documents, size = counting.read.documents, counting.read.bytes
    rows = [[("read", ""), (f"{documents}", ""), (megabytes(size), ""), ("100 %", "")]]
    for reason, tally in counting.dropped.items():
        documents, size = documents - tally.documents, size - tally.bytes
        share = documents / max(1, counting.read.documents)
        rows.append([(reason, f"− {tally.documents}"), (f"{documents}", ""),
                     (megabytes(max(size, 0)), ""), (f"{share:.1%}", "")])  # fmt: skip
    rows.append(
        [
            ("kept", ""),
            (f"{counting.kept.documents}", ""),
            (megabytes(counting.kept.bytes), ""),
            (f"{counting.kept.documents / max(1, counting.read.documents):.1%}", ""),
        ]
    )
    return {
        "title": "Funnel",
        "head": ["after", "documents", "text", "of what was read"],
        "rows": rows,
        "notes": ["Each dropped document is counted under the first rule that refused it."],
    }


def _sections(counting: Counting) -> list[dict[str, Any]]:
    cards = [
        _card("Length of documents", "characters, by powers of two", counting.lengths_read,
              counting.lengths_kept, _bins),
        _card(
            "Languages", "documents", counting.languages_read, counting.languages_kept, _commonest
        ),
    ]  # fmt: skip
    return [{"title": "Before and after", "cards": cards}]


def _card(title: str, meaning: str, before: Counter[Any], after: Counter[Any], names: Any) -> dict:
    bars = []
    for name, key in names(before):
        bars.append(charts.Bar(f"{name} read", before[key], colour=0))
        bars.append(charts.Bar(f"{name} kept", after[key], colour=1))
    return {"title": title, "meaning": meaning, "chart": charts.bars(bars, label=title),
            "legend": [("read", 0), ("kept", 1)]}  # fmt: skip


def _bins(counts: Counter[int]) -> list[tuple[str, int]]:
    return [(f"{1 << (k - 1)}–{(1 << k) - 1}" if k > 1 else f"{k}", k) for k in sorted(counts)]


def _commonest(counts: Counter[str]) -> list[tuple[str, str]]:
    return [(name, name) for name, _ in counts.most_common(8)]


def _samples(result: Result) -> dict[str, Any] | None:
    """Thirty random texts that stayed, and the first few that each rule dropped."""
    rows = [_sample("kept", "", text, {"language": language})
            for _, text, language in result.samples]  # fmt: skip
    for reason, tally in result.counting.dropped.items():
        rows += [_sample(reason, e.get("where", ""), e["text"], {}) for e in tally.examples]
    return sample_store(rows, group="reason", group_label="kept or dropped by",
                        value_label="length", colours={"text": 0})  # fmt: skip


def _sample(reason: str, where: str, text: str, facts: dict[str, str]) -> dict[str, Any]:
    return {"prompt": f"{reason} {where}".strip(), "group": reason, "value": len(text),
            "answers": [{"name": "text", "text": text, "facts": facts}]}  # fmt: skip


def _repairs(counting: Counting) -> dict[str, Any]:
    rows = []
    for name, tally in counting.repaired.items():
        for i, example in enumerate(tally.examples[:3] or [{}]):
            rows.append(
                [
                    "" if i else name,
                    "" if i else tally.documents,
                    _visible(example.get("before", "")),
                    _visible(example.get("after", "")),
                ]
            )
    return {"title": "Repairs", "head": ["repair", "documents changed", "before", "after"],
            "rows": rows}  # fmt: skip


def _visible(text: str) -> str:
    """Characters that leave no mark, as their code points."""
    return "".join(c if c.isprintable() else "⏎" if c == "\n" else f"⟨{ord(c):04X}⟩" for c in text)


def _files(counting: Counting) -> dict[str, Any] | None:
    rows = [[reason, len(names), ", ".join(names[:5])] for reason, names in counting.files.items()]
    return {"title": "Files not read, or not to their end", "head": ["reason", "files", "which"],
            "rows": rows} if rows else None  # fmt: skip


def _sources(counting: Counting) -> dict[str, Any]:
    rows = [[name, r[0], megabytes(r[1]), r[2], megabytes(r[3])]
            for name, r in counting.sources.items()]  # fmt: skip
    title = "Inputs" if len(rows) <= _INPUTS else f"Inputs, the first {_INPUTS} of {len(rows)}"
    return {"title": title, "rows": rows[:_INPUTS],
            "head": ["input", "documents read", "text", "documents kept", "text"]}  # fmt: skip


def _settings(settings: Settings) -> dict[str, Any]:
    from dataclasses import asdict

    text = "\n".join(f"{name}: {value}" for name, value in asdict(settings).items())
    return {"title": "Settings", "summary": "every step's", "text": text}
