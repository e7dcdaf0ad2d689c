r"""summarize_from_feedback (Stiennon et al. 2020): two summaries of a post or an article.

    {"info": {"id", "post", "title", "subreddit", "article"}, "choice": 1, "worker": "w",
     "summaries": [{"text", "policy", "note"}, {"text", …}], "batch", "split",
     "extra": {"confidence": 8}}

choice: index of the better summary. worker: the annotator. The prompt is the one that the authors
trained on: "SUBREDDIT: r/…\n\nTITLE: …\n\nPOST: …\n\nTL;DR:", or "Article:\n…\n\nTL;DR:" for an
article; what is null is left out. A summary loses the space around it: the published texts begin
with the one space that their tokenisation needed.

``extra.confidence`` is on a scale of 1 to 9 whose direction the authors do not document, so it is
kept in meta and is no strength. Of several votes on one comparison meta keeps the first one's.
Rows of ``axis_evals`` rate one summary alone and compare nothing: dropped as ``single_summary``.
"""

from __future__ import annotations

from typing import Any

from align.jsonl import as_object, short
from align.records import Candidate, Judgement, PreferenceGroup, RecordError
from reward_models.annotations.base import Format, Intake, make_group, prompt_messages, row_by_row
from reward_models.annotations.fields import given, name_of, text_field

NAME = "summarize_from_feedback"


def matches(obj: Any) -> str | None:
    """Evidence that a row is a comparison or an axis rating."""
    if not (isinstance(obj, dict) and isinstance(obj.get("info"), dict)):
        return None
    if isinstance(obj.get("summaries"), list) and "choice" in obj:
        return "info, summaries and choice"
    summary = obj.get("summary")
    if isinstance(summary, dict) and "axes" in summary:
        return "info and a summary with axes (ratings, no comparisons)"
    return None


def convert(obj: Any, intake: Intake) -> PreferenceGroup:
    """One row → one group of two summaries and one vote."""
    obj = as_object(obj)
    if isinstance(obj.get("summary"), dict) and "summaries" not in obj:
        raise RecordError("the ratings of one summary compare nothing", code="single_summary")
    obj = as_object(obj, "info", "summaries", "choice")
    info, summaries = as_object(obj["info"]), obj["summaries"]
    if not (isinstance(summaries, list) and len(summaries) == 2):
        raise RecordError(f"two summaries are needed: {short(summaries)}", code="not_a_pair")
    candidates = [
        Candidate(str(i), text_field(as_object(s), "text").strip(), name_of(s.get("policy")))
        for i, s in enumerate(summaries)
    ]
    choice = obj["choice"]
    if isinstance(choice, bool) or choice not in (0, 1):
        raise RecordError(f"choice {short(choice)} is not 0 or 1", code="unknown_winner")
    choice = int(choice)
    worker = name_of(obj.get("worker"))
    verdict = {"winner": str(choice), "loser": str(1 - choice)}
    judgement = Judgement(worker, "pair", verdict, source=NAME)
    group = make_group(prompt_messages(prompt_of(info)), candidates, (judgement,), _meta(obj, info))
    winner = candidates[choice].content
    if intake.seen(NAME, group.group_id, worker, winner, obj.get("batch"), obj.get("extra")):
        raise RecordError("the same vote stands earlier in the input", code="duplicate_row")
    intake.vote()
    return group


def votes_in(obj: Any) -> int:
    """A comparison is one vote; a rating of a single summary counts as one too."""
    return int(isinstance(obj, dict))


def prompt_of(info: dict[str, Any]) -> str:
    """The text to summarise, as the authors' models saw it; "" without a post or an article."""
    post, article = info.get("post"), info.get("article")
    if isinstance(post, str) and post.strip():
        parts = [("SUBREDDIT: r/", info.get("subreddit")), ("TITLE: ", info.get("title"))]
        lines = [f"{name}{value}" for name, value in parts if isinstance(value, str) and value]
        return "\n\n".join([*lines, f"POST: {post}", "TL;DR:"])
    if isinstance(article, str) and article.strip():
        return f"Article:\n{article}\n\nTL;DR:"
    return ""


def _meta(obj: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
    meta = {"source": NAME, **given(obj, ("batch",))}
    if info.get("id") is not None:
        meta["post_id"] = info["id"]
    if obj.get("split") is not None:
        meta["source_split"] = obj["split"]
    extra = obj.get("extra")
    if isinstance(extra, dict):
        meta.update(given(extra, ("confidence",)))
    return meta


FORMAT = Format(NAME, "OpenAI's summary comparisons", matches, row_by_row(convert, votes_in))
