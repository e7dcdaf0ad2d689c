"""What the columns of a table mean, by their names or by ``--mapping``."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from align.config_errors import UserError, nearest
from reward_models.annotations.intake import Row

# Roles that occur once. The order is that in which a prompt is looked for.
ONCE = {
    "prompt": "prompt instruction question query input context dialogue conversation messages "
    "提示 提示词 指令 问题 提问 题目 输入 对话",
    "system": "system system_prompt 系统提示 系统提示词",
    "winner": "winner preferred preference better best choice "
    "胜者 获胜 优胜 更好 更优 最佳 首选 偏好 选择",
    "annotator": "annotator annotator_id annotator_name worker worker_id rater rater_id labeler "
    "labeller labeler_id reviewer judge user user_id username "
    "标注员 标注者 标注人 评审 评审员 用户",
    "strength": "strength margin confidence 强度 置信度 把握",
    "chosen": "chosen",
    "rejected": "rejected",
}
PROMPTS = tuple(ONCE["prompt"].split())
# Roles that every candidate has.
ANSWERS = (
    "response|answer|output|completion|candidate|option|reply|summary|text|"
    "回答|回复|答案|答复|候选|输出|选项"
)
EACH = {
    "answer": ANSWERS,
    "rank": "rank|ranking|position|排名|排序|名次",
    "score": "score|rating|grade|分数|评分|得分|打分",
    "model": "model|generator|模型",
}
SUFFIX = r"(?P<suffix>[0-9]{1,2}|[a-z]|[一二三四五六七八九甲乙丙丁])"
NAMES = {name: role for role, names in ONCE.items() for name in names.split()}
NUMBERED = tuple(
    (role, re.compile(rf"(?P<stem>{stems})_?{SUFFIX}")) for role, stems in EACH.items()
)
# response_1_rank, 回答1排名
BEHIND = tuple(
    (role, re.compile(rf"(?P<stem>{ANSWERS})_?{SUFFIX}_?(?:{EACH[role]})"))
    for role in ("rank", "score", "model")
)
BARE = re.compile(r"(?P<suffix>[a-h])|(?P<side>left|right)")
TARGETS = ("prompt", "system", "winner", "annotator", "strength", "margin", "chosen", "rejected",
           "target")  # fmt: skip
MAPPED = re.compile(r"(response|answer|rank|score|model)_([0-9]{1,2}|[a-z])")
# Columns of other formats that hold text though a cell may look like a number.
TEXTS = ("text", "history", "human_ref_a", "human_ref_b", "output", "completion", "response",
         "post", "summary")  # fmt: skip


def plain_name(name: str) -> str:
    """A column's name as it is compared: narrow, lower case, one underscore between words."""
    name = unicodedata.normalize("NFKC", name).strip().lower()
    return re.sub(r"[\s_\-.]+", "_", name)


@lru_cache(maxsize=4096)
def role_of(name: str) -> tuple[str, str, str] | None:
    """(role, suffix, stem) of a column, or None; the suffix of a role that occurs once is ""."""
    name = plain_name(name)
    if name in NAMES:
        return NAMES[name], "", name
    for role, pattern in (*NUMBERED, *BEHIND):
        if match := pattern.fullmatch(name):
            return role, match["suffix"], match["stem"]
    if match := BARE.fullmatch(name):
        return "answer", match["suffix"] or match["side"], ""
    return None


@lru_cache(maxsize=4096)
def is_text(name: str) -> bool:
    """Whether a cell under this name is text, whatever it looks like."""
    role = role_of(name)
    return plain_name(name) in TEXTS or (
        role is not None and role[0] not in ("rank", "score", "strength", "winner")
    )


def parse_mapping(text: str) -> dict[str, str]:
    """``prompt=问题,response_1=回答A`` as {target: column}; UserError for a target that is none.

    A comma belongs to a column's name unless ``word=`` follows it.
    """
    mapping: dict[str, str] = {}
    for part in re.split(r",(?=\s*\w+\s*=)", text):
        target, sign, column = part.partition("=")
        target, column = target.strip(), column.strip()
        if not sign or not column:
            raise UserError("mapping", text, f"has {part!r} where NAME=COLUMN is expected", EXAMPLE)
        if target not in TARGETS and not MAPPED.fullmatch(target):
            known = [*TARGETS, *(f"{n}_1" for n in ("response", "rank", "score", "model"))]
            close = nearest(target, known)
            hint = f"Did you mean {close}?" if close else f"Use {', '.join(known)}, response_2, …"
            raise UserError(
                "mapping", text, f"names {target!r}, which is no role of a column", hint
            )
        if target in mapping:
            raise UserError("mapping", text, f"names {target} twice", EXAMPLE)
        mapping[target] = column
    return mapping


EXAMPLE = "Write --mapping prompt=问题,response_1=回答A,response_2=回答B,winner=更好的"


def check_columns(mapping: Mapping[str, str], name: str, columns: Iterable[str]) -> None:
    """Raises UserError for a mapped column that is not among the columns of a table."""
    columns = list(columns)
    lacking = next((c for c in mapping.values() if c not in columns), None)
    if lacking is not None:
        close = nearest(lacking, columns)
        hint = f"Did you mean {close!r}?" if close else f"It has {', '.join(map(repr, columns))}"
        raise UserError("mapping", lacking, f"is no column of {name}", hint)


def renamed(rows: Iterable[Row], mapping: Mapping[str, str]) -> Iterator[Row]:
    """Rows with mapped columns under their roles' names.

    Whatever the mapping names one column for is told by the mapping alone: with ``response_1``
    and ``response_2`` mapped, a further column ``answer_3`` is no candidate. A winner that names a
    mapped column means that column: read by itself, the ``A`` of ``response_2=A`` would be the
    first answer.
    """
    told = {role[0] for target in mapping if (role := role_of(target))}
    told |= {"chosen", "rejected", "answer"} if told & {"chosen", "answer"} else set()
    taken = set(mapping.values())
    answers = {
        plain_name(column): target
        for target, column in mapping.items()
        if (role_of(target) or ("",))[0] == "answer"
    }
    for row in rows:
        obj = row.obj
        if row.error is not None or not isinstance(obj, dict) or not taken & obj.keys():
            yield row
            continue
        left = {
            name: value
            for name, value in obj.items()
            if name not in taken and (role_of(name) or ("",))[0] not in told
        }
        made: dict[str, Any] = {t: obj[c] for t, c in mapping.items() if c in obj}
        made = {**left, **made}
        for name, value in made.items():
            if isinstance(value, str) and (role_of(name) or ("",))[0] == "winner":
                made[name] = answers.get(plain_name(value), value)
        yield Row(row.file, row.line, row.number, made, None, row.ends)
