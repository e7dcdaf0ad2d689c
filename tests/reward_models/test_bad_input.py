"""Damaged and odd exports through the whole command: exit 2 with a fix, or counted rejects.

Never a traceback, never a wrong pair: what is imported is compared with (prompt, better, worse).
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import re
import time
import zipfile

import pytest

from reward_models.import_annotations import main


def jsonl(*rows, ascii=True):
    return "".join(json.dumps(row, ensure_ascii=ascii) + "\n" for row in rows).encode()


def zipped(**members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name.replace("__", "."), data)
    return file.getvalue()


def pair(prompt, better, worse, **more):
    return {"prompt": prompt, "chosen": better, "rejected": worse, **more}


def group(ids, *values, kind="pair"):
    """Canonical: answers "A", "B", … under these ids."""
    candidates = [{"id": i, "content": chr(65 + k)} for k, i in enumerate(ids)]
    votes = [{"annotator": f"w{k}", "kind": kind, "value": v} for k, v in enumerate(values)]
    return {"prompt": "Q", "candidates": candidates, "judgements": votes}


def task(*annotations, **data):
    data = data or {"prompt": "Q", "answer1": "A", "answer2": "B"}
    return {"id": 1, "data": data, "annotations": list(annotations)}


def vote(side, number, who=1):
    result = {"from_name": "c", "to_name": "answer1", "type": "pairwise",
              "value": {"selected": side}}  # fmt: skip
    return {"id": number, "completed_by": who, "result": [result]}


def ranker(number, *ranks):
    result = {"from_name": "r", "to_name": "items", "type": "ranker",
              "value": {"ranker": {"rank": list(ranks)}}}  # fmt: skip
    return {"id": number, "completed_by": 1, "result": [result]}


def nectar(*ranks):
    answers = [{"answer": chr(65 + k), "model": f"m{k}", "rank": r} for k, r in enumerate(ranks)]
    return {"prompt": "\n\nHuman: Q\n\nAssistant: ", "answers": answers}


def arena(winner):
    turns = [[{"role": "user", "content": "Q"}, {"role": "assistant", "content": a}] for a in "AB"]
    return {"question_id": "q", "model_a": "x", "model_b": "y", "winner": winner, "judge": "u",
            "conversation_a": turns[0], "conversation_b": turns[1], "turn": 1}  # fmt: skip


GOOD = pair("问", "甲", "乙")
B_WINS = {"winner": "b", "loser": "a"}
ITEMS = [{"id": i, "body": i.upper()} for i in "ab"]
GBK = "问题：春天有哪些花可以看？我们这里的人都想知道"
HEADER = "prompt,response_1,response_2,winner\n"
CUT = json.dumps([GOOD, pair("Q", "A", "B")])[:-9].encode()

# name, content, (prompt, better, worse, probability) of every pair, dropped rows, dropped votes.
IMPORTED = {
    "truncated array": ("x.json", CUT, [("问", "甲", "乙", 1)], {"truncated_file": 1}, None),
    "truncated lines": (
        "x.jsonl", jsonl(GOOD, pair("Q", "A", "B"))[:-9], [("问", "甲", "乙", 1)],
        {"bad_json": 1}, None,
    ),
    "byte order mark, lines": (
        "x.jsonl", codecs.BOM_UTF8 + jsonl(GOOD, ascii=False), [("问", "甲", "乙", 1)], {}, None,
    ),
    "byte order mark, array": (
        "x.json", codecs.BOM_UTF8 + json.dumps([GOOD]).encode(), [("问", "甲", "乙", 1)], {}, None,
    ),
    "byte order mark, table": (
        "x.csv", codecs.BOM_UTF8 + f"{HEADER}问,甲,乙,2\n".encode(), [("问", "乙", "甲", 1)], {},
        None,
    ),
    "UTF-16": (
        "x.jsonl", jsonl(GOOD, ascii=False).decode().encode("utf-16"), [("问", "甲", "乙", 1)], {},
        None,
    ),
    "one line in another encoding": (
        "x.jsonl",
        jsonl(GOOD, pair("Q", "A", "B"), pair("R", "C", "D"), ascii=False)
        + jsonl(pair(GBK, "好", "坏"), ascii=False).decode().encode("gbk"),
        [("问", "甲", "乙", 1), ("Q", "A", "B", 1), ("R", "C", "D", 1)], {"bad_encoding": 1}, None,
    ),
    "NaN ranks": (
        "x.jsonl", b"".join(jsonl(nectar(*r)) for r in ((2.0, 1.0), (1.0, float("nan")))),
        [("Q", "B", "A", 1)], {"bad_rank": 1}, None,
    ),
    "a NaN rank of three": (
        "x.jsonl", jsonl(group("abc", {"a": 1, "b": float("nan"), "c": 2}, kind="rank"),
                         group("ab", {"a": 2, "b": 1}, kind="rank")),
        [("Q", "B", "A", 1)], {"bad_record": 1}, None,
    ),
    "NaN in a table": (
        "x.csv", b"prompt,response_1,response_2,rank_1,rank_2\nQ,A,B,2,1\nQ,A,B,nan,1\nR,A,B,,1\n",
        [("Q", "B", "A", 1)], {"not_finite": 1, "nothing_ranked": 1}, None,
    ),
    "infinite score": (
        "x.jsonl", jsonl(group("ab", {"a": 1e999, "b": 1}, kind="score"),
                         group("ab", {"a": 10**400, "b": 1}, kind="score"),
                         group("ab", {"a": 3, "b": 1}, kind="score")),
        [("Q", "A", "B", 1)], {"bad_record": 2}, None,
    ),
    "unknown winner, table": (
        "x.csv", f"{HEADER}Q,A,B,2\nQ,A,B,3\nQ,A,B,maybe\nQ,A,B,\n".encode(),
        [("Q", "B", "A", 1)], {"unknown_winner": 2, "no_judgements": 1}, None,
    ),
    "unknown winner, arena": (
        "x.jsonl", jsonl(arena("model_b"), arena("model_c"), arena(None), arena(1)),
        [("Q", "B", "A", 1)], {"unknown_winner": 3}, None,
    ),
    "unknown winner, SHP": (
        "x.jsonl",
        jsonl(*({"history": "Q", "human_ref_A": "A", "human_ref_B": "B", "labels": label}
                for label in (0, 2, "A", None, True))),
        [("Q", "B", "A", 1)], {"unknown_winner": 4}, None,
    ),
    "one candidate": (
        "x.jsonl", jsonl(group("a", {"a": 1}, kind="rank"), group("ab", B_WINS)),
        [("Q", "B", "A", 1)], {"one_candidate": 1}, None,
    ),
    "one candidate, table": (
        "x.csv", f"{HEADER}Q,A,,1\nQ,A,B,1\n".encode(), [("Q", "A", "B", 1)], {"one_candidate": 1},
        None,
    ),
    "ids that are not in the list": (
        "x.jsonl", jsonl(group("ab", {"winner": "a", "loser": "c"}), group("aa", B_WINS),
                         group("ab", {"x": 1, "a": 2}, kind="rank"), group("ab", B_WINS)),
        [("Q", "B", "A", 1)], {"unknown_candidate": 2, "duplicate_candidate_id": 1}, None,
    ),
    "ranker ids that are not in the list": (
        "x.json",
        json.dumps([task(ranker(5, "a", "z"), prompt="Q", items=ITEMS),
                    task(ranker(6, "b", "a"), prompt="Q", items=ITEMS)]).encode(),
        [("Q", "B", "A", 1)], {"unknown_candidate": 1}, {"unknown_candidate": 1},
    ),
    "duplicate annotation ids": (
        "x.json",
        json.dumps([task(vote("left", 7), vote("left", 7), vote("right", 8, 2), vote("left", 9, 3)),
                    task(vote("left", 7))]).encode(),
        [("Q", "A", "B", 2 / 3)], {"duplicate_annotation": 1}, {"duplicate_annotation": 2},
    ),
    "header below a title and comments": (
        "x.csv", f"Export of May\n\n# made by a tool\n# 2024\n{HEADER}Q,A,B,2\n".encode(),
        [("Q", "B", "A", 1)], {}, None,
    ),
    "columns in another order": (
        "x.csv", b"winner,response_2,note,prompt,response_1\n2,B,x,Q,A\n1,D,y,R,C\n",
        [("Q", "B", "A", 1), ("R", "C", "D", 1)], {}, None,
    ),
    "the header again in the middle": (
        "x.csv", f"{HEADER}Q,A,B,2\n{HEADER}R,C,D,1\n".encode(),
        [("Q", "B", "A", 1), ("R", "C", "D", 1)], {"repeated_header": 1}, None,
    ),
    "rows with a cell too many": (
        "x.csv", f"{HEADER}Q,A, or rather,B,2\nR,C,D,1\n".encode(), [("R", "C", "D", 1)],
        {"bad_columns": 1}, None,
    ),
}  # fmt: skip

# name, content, what the error says. Each is exit 2 and leaves nothing.
REFUSED = {
    "0 bytes": ("x.json", b"", "x.json' is empty. Export the annotations again"),
    "white space": ("x.jsonl", b" \n\n", "x.jsonl' is empty"),
    "0 bytes in gzip": ("x.jsonl.gz", gzip.compress(b""), "is empty"),
    "a mark and nothing": ("x.csv", codecs.BOM_UTF8, "is empty"),
    "0 bytes in a zip": ("x.zip", zipped(a__jsonl=b""), "x.zip/a.jsonl' is empty"),
    "truncated gzip": (
        "x.jsonl.gz", gzip.compress(jsonl(GOOD))[:-20],
        "cannot be read: Compressed file ended before .*Check the file",
    ),
    "truncated at once": ("x.json", b'[{"prompt": "Q', "no readable row .truncated_file"),
    "wrong encoding": (
        "x.json", json.dumps([pair(GBK, "好", "坏")], ensure_ascii=False).encode("gbk"),
        "reads as GB18030 or GBK .Chinese Windows.. Add --encoding gb18030",
    ),
    "wrong encoding, table": (
        "x.csv", f"{HEADER}{GBK},好,坏,1\n".encode("gbk"), "Add --encoding gb18030",
    ),
    "nested zip": (
        "x.zip", zipped(in__zip=zipped(a__jsonl=jsonl(GOOD)), b__jsonl=jsonl(GOOD)),
        "x.zip/in.zip' is an archive inside an archive. Unpack the outer one",
    ),
    "zip bomb": (
        "x.zip", zipped(a__jsonl=b" " * (70 << 20)), "times its size, like a zip bomb",
    ),
    "a path outside": (
        "x.zip", zipped(**{"/___/a__jsonl": jsonl(GOOD)}), "leads out of the archive",
    ),
    "damaged zip": ("x.zip", zipped(a__jsonl=jsonl(GOOD))[:-8], "is a damaged zip archive"),
    "all ranks NaN": ("x.jsonl", jsonl(nectar(float("nan"), float("nan"))), "1 bad_rank"),
    "no header": ("x.csv", b"Q,A,B,1\nR,C,D,2\n", "no known format; its keys are"),
    "a header below data": (
        "x.csv", f"Q,A,B,1\n{HEADER}".encode(), "has its header in row 2, below rows as wide",
    ),
    "two headers alike": ("x.csv", b"prompt,answer_1,answer_1,winner\nQ,A,B,1\n", "two columns"),
    "one candidate only": ("x.jsonl", jsonl(group("a", {"a": 1}, kind="rank")), "1 one_candidate"),
}  # fmt: skip


def imported(tmp_path, name, content, *words):
    """Runs the command; checks its books. Returns (pairs, report)."""
    source, output = tmp_path / name, tmp_path / "out"
    if content is not None:
        source.write_bytes(content)
    assert main(["--input", str(source), "--output", str(output), *words]) == 0
    report = json.loads((output / "report.json").read_text("utf-8"))
    rejects = [json.loads(line) for line in (output / "rejects.jsonl").open(encoding="utf-8")]
    assert len(rejects) == sum(report["rows"]["dropped"].values())
    assert all(r["file"] == str(source) and r["line"] and r["row"] for r in rejects)
    pairs = [json.loads(line) for line in (output / "pairs.jsonl").open(encoding="utf-8")]
    found = [
        (*(p[side][-1]["content"] for side in ("prompt", "chosen", "rejected")), p["target"])
        for p in pairs
    ]
    return found, report


@pytest.mark.parametrize("case", IMPORTED)
def test_damaged_rows_are_counted_and_no_pair_is_wrong(tmp_path, case):
    name, content, pairs, dropped, votes = IMPORTED[case]
    found, report = imported(tmp_path, name, content)
    assert [(*texts, pytest.approx(p)) for *texts, p in pairs] == found
    assert report["rows"]["dropped"] == dropped
    if votes is not None:
        assert report["votes"]["dropped"] == votes


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_exit_2_with_a_fix(tmp_path, capsys, case):
    name, content, message = REFUSED[case]
    source = tmp_path / name
    source.write_bytes(content)
    assert main(["--input", str(source), "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(r"error: input='.+ .+\. .+\.\n", error)
    assert re.search(message, error)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_escaped_html_is_said_and_kept_or_undone(tmp_path):
    row = pair("Is 1 &lt; 2?", "Yes: 1 &lt; 2", "&quot;No&quot;")
    found, report = imported(tmp_path, "x.jsonl", jsonl(row, GOOD))
    assert found[0] == ("Is 1 &lt; 2?", "Yes: 1 &lt; 2", "&quot;No&quot;", 1)
    assert "text is HTML-escaped" in report["warnings"][0]
    found, report = imported(tmp_path, "x.jsonl", None, "--unescape_html")
    assert found[0] == ("Is 1 < 2?", "Yes: 1 < 2", '"No"', 1)
    assert "empty" in report["warnings"][0]


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.csv"])
def test_a_line_of_200_megabytes(tmp_path, name):
    """Over the real limit of a row; nothing holds it whole."""
    good = {"x.csv": f"{HEADER}问,甲,乙,1\n".encode(), "x.jsonl": jsonl(GOOD),
            "x.json": b"[" + json.dumps(GOOD).encode() + b",\n"}[name]  # fmt: skip
    start, end = ('"', '",A,B,1\n') if name == "x.csv" else ('{"prompt": "', '"}\n')
    with open(tmp_path / name, "wb") as file:
        file.write(good + start.encode())
        for _ in range(200):
            file.write(b"x" * (1 << 20))
        file.write(end.encode())
        file.write(b"Q,A,B,2\n" if name == "x.csv" else jsonl(pair("Q", "A", "B")))
    begin = time.process_time()
    found, report = imported(tmp_path, name, None)
    assert time.process_time() - begin < 30
    behind = {"x.csv": [("Q", "B", "A", 1)], "x.jsonl": [("Q", "A", "B", 1)], "x.json": []}[name]
    assert found == [("问", "甲", "乙", 1), *behind]
    assert report["rows"]["dropped"] == {"row_too_long": 1}
