"""OpenAssistant conversations: replies to one message, ranked by volunteers.

    {"message_id": "m", "parent_id": "p", "role": "assistant", "text": "…", "lang": "en", "rank": 0,
     "deleted": false, "synthetic": false, "message_tree_id": "t", "tree_state": "…"}
    {"message_tree_id": "t", "tree_state": "…", "prompt": {message, "replies": [{message, …}]}}

Read: trees, and flat messages in any order. Every message with two or more ranked assistant replies
is a comparison of these replies; the prompt is the path from the root to that message. Rank 0 is
the best, and it is the agreement of several volunteers already, so the annotator has no name.

A message is used as a candidate or in a prompt. Otherwise it is dropped: ``deleted``, ``no_parent``
(a message on its path is missing or deleted), ``no_rank``, ``single_reply`` (no other ranked one),
``no_comparison`` (a user message with nothing to compare below it). A tree with no comparison is
``no_comparison``. Each rank is a vote; ranks of user messages are none (``prompter_rank``).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from align.jsonl import as_object, short
from align.records import Candidate, Judgement, Message, PreferenceGroup, RecordError
from reward_models.annotations.base import Format, Intake, Row, make_group, rows_by_key
from reward_models.annotations.fields import given, name_of, number, text_field

ROLES = {"prompter": "user", "assistant": "assistant"}


@dataclass
class Node:
    """A message in its tree. why: the reason why it is no candidate; "" for a candidate."""

    row: Row
    obj: dict[str, Any]
    parent: str | None
    ranked: bool
    why: str = ""
    used: bool = False

    @property
    def id(self) -> str:
        """The message's id."""
        return self.obj["message_id"]


def matches(obj: Any) -> str | None:
    """Evidence that a row is a tree or a message of one."""
    if not (isinstance(obj, dict) and "message_tree_id" in obj):
        return None
    if isinstance(obj.get("prompt"), dict) and "replies" in obj["prompt"]:
        return "message_tree_id and a prompt with replies (trees)"
    if {"message_id", "role", "text", "rank"} <= obj.keys():
        return "message_tree_id, message_id, role, text and rank (flat messages)"
    return None


def key(obj: Any) -> str:
    """The tree that a row belongs to; RecordError where the row is neither tree nor message."""
    obj = as_object(obj, "message_tree_id")
    tree = text_field(obj, "message_tree_id")
    if "prompt" not in obj:
        _check(obj)
    elif not isinstance(obj["prompt"], dict):
        raise RecordError(f"prompt is no message: {short(obj['prompt'])}", code="not_a_tree")
    return tree


def votes_in(obj: Any) -> int:
    """How many messages of a row have a rank."""
    return sum(_has_rank(message) for message, _ in _messages(obj))


def parse(rows: Iterable[Row], intake: Intake) -> Iterator[PreferenceGroup]:
    """Rows → the comparisons of each tree, in the order in which the trees begin."""
    for together in rows_by_key(rows, intake, key, votes_in):
        nodes = [node for row in together for node in _nodes(row)]
        found = _comparisons(nodes, intake)
        _account(together, nodes, intake)
        for row, group in found:
            intake.begin(row)
            yield group


def _messages(obj: Any) -> Iterator[tuple[Any, str | None]]:
    """(message, its parent's id) of a tree, parents first, or of a flat row; "" is nobody's id."""
    if isinstance(obj, dict) and "prompt" not in obj:
        parent = obj.get("parent_id")
        yield obj, parent if parent is None or isinstance(parent, str) else ""
        return
    waiting = [(obj["prompt"], None)] if isinstance(obj, dict) else []
    while waiting:
        message, parent = waiting.pop()
        yield message, parent
        replies = message.get("replies") if isinstance(message, dict) else None
        if isinstance(replies, list):
            own = name_of(message.get("message_id")) or ""
            waiting += [(reply, own) for reply in reversed(replies)]


def _nodes(row: Row) -> Iterator[Node]:
    for message, parent in _messages(row.obj):
        ranked = _has_rank(message)
        try:
            _check(message)
        except RecordError as error:
            yield Node(row, {"message_id": ""}, parent, ranked, error.code)
            continue
        yield Node(row, message, parent, ranked, _unfit(message))


def _check(message: Any) -> None:
    message = as_object(message)
    text_field(message, "text")
    if not text_field(message, "message_id"):
        raise RecordError("message_id is empty", code="missing_field")
    role = text_field(message, "role")
    if role not in ROLES:
        raise RecordError(f"unknown role {short(role)}", code="bad_role")


def _unfit(message: dict[str, Any]) -> str:
    """Why a message can be no candidate, whatever stands beside it."""
    if message.get("deleted"):
        return "deleted"
    if message["role"] == "prompter":
        return "prompter_rank" if _has_rank(message) else "no_comparison"
    if not _has_rank(message):
        return "no_rank"
    if number(message["rank"]) is None:
        return "bad_rank"
    return "" if message["text"].strip() else "empty_candidate"


def _has_rank(message: Any) -> bool:
    rank = message.get("rank") if isinstance(message, dict) else None
    return rank is not None and not (isinstance(rank, float) and math.isnan(rank))


def _comparisons(nodes: list[Node], intake: Intake) -> list[tuple[Row, PreferenceGroup]]:
    """The tree's groups with the row of their first candidate; marks nodes used or says why not."""
    tree: dict[str, Node] = {}
    siblings: dict[str | None, list[Node]] = defaultdict(list)
    for node in nodes:
        if node.id and tree.setdefault(node.id, node) is not node:
            node.why = "duplicate_row"
        if not node.why:
            siblings[node.parent].append(node)
    found = []
    for parent, replies in siblings.items():
        path = _path(parent, tree)
        try:
            group = _group(path, replies, intake)
        except RecordError as error:
            for node in replies:
                node.why = error.code
            continue
        for node in (*path, *replies):
            node.used = True
        found.append((replies[0].row, group))
    return found


def _path(name: str | None, tree: dict[str, Node]) -> list[Node]:
    """The messages from the root to this one; empty where one is missing, deleted or repeated."""
    path: list[Node] = []
    passed: set[str] = set()
    while name is not None:
        node = tree.get(name)
        if node is None or node.why == "deleted" or name in passed:
            return []
        passed.add(name)
        path.append(node)
        name = node.parent
    return path[::-1]


def _group(path: list[Node], replies: list[Node], intake: Intake) -> PreferenceGroup:
    if not path:
        raise RecordError("the path to the root is broken", code="no_parent")
    if path[-1].obj["role"] != "prompter":
        raise RecordError("an answer to an answer", code="bad_role")
    if len(replies) < 2:
        raise RecordError("no other ranked reply", code="single_reply")
    prompt = [Message(ROLES[node.obj["role"]], node.obj["text"]) for node in path]
    candidates = [
        Candidate(node.id, node.obj["text"], name_of(node.obj.get("model_name")))
        for node in replies
    ]
    ranks = {node.id: node.obj["rank"] for node in replies}
    judgement = Judgement(None, "rank", ranks, source="oasst")
    parent = path[-1].obj
    meta = {"source": "oasst", "parent_id": parent["message_id"]}
    meta |= given(path[-1].row.obj, ("message_tree_id", "tree_state")) | given(parent, ("lang",))
    group = make_group(prompt, candidates, (judgement,), meta)
    said = sorted((node.obj["text"], node.obj["rank"]) for node in replies)
    if intake.seen("oasst", group.group_id, said):
        raise RecordError("the same ranking stands earlier in the input", code="duplicate_row")
    return group


def _account(rows: list[Row], nodes: list[Node], intake: Intake) -> None:
    """Books every row and every rank of a tree."""
    of_row: dict[int, list[Node]] = defaultdict(list)
    for node in nodes:
        of_row[id(node.row)].append(node)
    for row in rows:
        intake.begin(row)
        own = of_row[id(row)]
        for node in own:
            if node.ranked and node.why:
                intake.drop_vote(node.why)
            elif node.ranked:
                intake.vote()
        if any(node.used for node in own):
            intake.use()
        elif "prompt" in row.obj:
            intake.drop(row, "no_comparison", "no message has two ranked replies")
        else:
            why = own[0].why
            code = "no_comparison" if why == "prompter_rank" else why
            intake.drop(row, code, f"message {own[0].id} is no candidate and in no prompt")


FORMAT = Format("oasst", "OpenAssistant trees and messages", matches, parse)
