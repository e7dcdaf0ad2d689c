"""The import report as one HTML page: self-contained, escaped, light and dark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

MAX_CHARTED, MAX_LISTED = 25, 200


def render(report: dict[str, Any]) -> str:
    """The page for the report of ``importing.run_import``."""
    from jinja2 import Environment, FileSystemLoader

    folder = Path(__file__).resolve().parent / "templates"
    environment = Environment(
        loader=FileSystemLoader(folder, encoding="utf-8"), autoescape=True, trim_blocks=True
    )
    environment.globals["percent"] = _percent
    quality = report["quality"]
    # Those who voted most come first: their habits weigh most.
    annotators = sorted(
        quality["agreement"]["annotators"].items(), key=lambda a: (-a[1]["judgements"], a[0])
    )
    counts = quality["languages"].values()
    used = [n for n in ("zh", "en", "mixed", "other") if any(c.get(n) for c in counts)]
    return environment.get_template("import_report.html").render(
        r=_Attributes({"aggregation": None, "skipped": None} | report),
        charts=_charts(quality, annotators),
        annotators=annotators[:MAX_LISTED],
        unlisted=max(0, len(annotators) - MAX_LISTED),
        languages=used,
    )


def _charts(quality: dict[str, Any], annotators: list[tuple[str, Any]]) -> dict[str, Any]:
    from reward_models.import_charts import Mark, columns, intervals

    compared = [(name, a) for name, a in annotators if a["n"]]
    return {
        "annotators": intervals(
            [
                Mark(name, a["rate"], a["low"], a["high"], f"of {a['n']} pairs")
                for name, a in compared[:MAX_CHARTED]
            ],
            label="Agreement with the others, by annotator",
            reference=quality["agreement"]["overall"]["rate"],
        ),
        "left_out": max(0, len(compared) - MAX_CHARTED),
        "shares": columns(
            [Mark(name.removesuffix(" %"), n) for name, n in quality["vote_shares"].items()],
            label="Pairs by the share of votes for the winner",
            x_label="% of the votes for the winner",
        ),
        "lengths": columns(
            [
                Mark(name, b["rate"], b["low"], b["high"], f"of {b['n']} votes")
                for name, b in quality["length_bins"].items()
            ],
            label="Win rate of the longer answer by how many times longer it is",
            x_label="how many times longer",
            percent=True,
            reference=0.5,
        ),
        "sizes": columns(
            [Mark(size, n) for size, n in quality["candidates_per_group"].items()],
            label="Groups by number of answers",
            x_label="answers in the group",
        ),
    }


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


class _Attributes:
    """Lets the page write ``r.rows.used`` without meeting ``dict.items`` and its like."""

    def __init__(self, values: dict[str, Any]):
        self._values = values

    def __getattr__(self, name: str) -> Any:
        return self._values[name]

    def __getitem__(self, name: str) -> Any:
        return self._values[name]
