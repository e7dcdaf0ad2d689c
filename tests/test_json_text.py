"""Text that orjson reads and writes is read and written as the json module does it."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from align.json_text import loads, string

characters = st.text(
    st.characters(codec="utf-8")
    | st.sampled_from('"\\/\b\f\n\r\t\x00\x1f\x7f\u2028\u2029\ufeff한글文🏮'),
    max_size=12,
)
numbers = (
    st.floats()
    | st.integers(-(2**70), 2**70)
    | st.sampled_from([2**63, 2**64 - 1, 2**64, -(2**63) - 1, 10**300, 1e300, -0.0, 5e-324])
)
values = st.recursive(
    st.none() | st.booleans() | numbers | characters | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(characters, inner, max_size=4),
    max_leaves=12,
)


def said(read, text):
    """The value with its types and the order of its keys, or the error and its message."""
    try:
        return repr(read(text))
    except (ValueError, RecursionError) as error:
        return type(error).__name__, str(error)


def same(raw):
    assert said(loads, raw) == said(lambda raw: json.loads(raw.decode("utf-8")), raw)


@settings(max_examples=300, deadline=None)
@given(values, st.booleans(), st.sampled_from([None, 1, "\t"]))
def test_what_json_writes_is_read_as_json_reads_it(value, plain, indent):
    text = json.dumps(value, ensure_ascii=plain, indent=indent)
    same(text.encode("utf-8", "surrogatepass"))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([*'{}[]:,"\\u0dD8e+-.1923 \n\x00\x0b', "NaN", '"a"', "ÿ"])))
@example(["1", "e", "9", "9", "9"])
def test_what_is_no_json_fails_alike(parts):
    same("".join(parts).encode("latin-1"))


@pytest.mark.parametrize(
    "raw",
    [
        b"NaN", b"[Infinity, -Infinity]", b"1e400", b"-0", b"-0.0", b"1E5", b"18446744073709551615",
        b"18446744073709551616", b"-9223372036854775808", b"-9223372036854775809",
        b"123456789012345678901234567890", b'{"id": 9007199254740993}', b"9" * 400, b"9" * 5000,
        b'"\\ud800"', b'"\\ud83c\\udfee"', b'"\\udfee\\ud83c"', b'{"a": 1, "b": 2, "a": [3]}',
        b'"\xff"', b'"\xed\xa0\x80"', b'\xef\xbb\xbf{"a": 1}', b'"\x7f"', b'"\x1f"', b"", b" ",
        b"01", b"1.", b".5", b"+1", b"'a'", b"[1,]", b'{"a": 1,}', b"1 2", b"nul", b'"\\x41"',
        b"[" * 90 + b"]" * 90, b"[" * 300 + b"1" + b"]" * 300, b'{"a":' * 2000 + b"1" + b"}" * 2000,
        b"0.1", b"2.2250738585072014e-308", b"9223372036854775807.0", b"0.30000000000000004",
    ],
)  # fmt: skip
def test_the_corners_are_read_as_json_reads_them(raw):
    same(raw)


def test_a_number_keeps_all_its_digits_wherever_it_stands():
    deep = {"rows": [[{"id": 98765432109876543210}]], "x": 1.5}
    assert loads(json.dumps(deep)) == deep
    assert loads(json.dumps(deep).encode()) == deep
    assert math.isnan(loads('{"n": [NaN]}')["n"][0])


@settings(max_examples=300, deadline=None)
@given(characters)
def test_a_string_is_written_as_json_writes_it(text):
    assert string(text) == json.dumps(text, ensure_ascii=False).encode()


def test_a_lone_surrogate_is_left_for_the_caller():
    assert string('a\ud800"') == b'"a\xed\xa0\x80\\""'
