from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.cleaning import pii
from align.cleaning.pii import bank_card, id_number, redact
from align.cleaning.settings import PII_KINDS
from align.cleaning.tokens import Batch


def redacted(text: str, *kinds: str) -> str:
    return redact(text, kinds or PII_KINDS, Counter())


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("联系我13812345678。", "联系我<PHONE>。"),
        ("+86 138-1234-5678", "<PHONE>"),
        ("电话：010-62345678，0755-12345678", "电话：<PHONE>，<PHONE>"),
        ("客服400-820-8820", "客服<PHONE>"),
        ("(555) 123-4567 or +44 20 7946 0958.", "<PHONE> or <PHONE>."),
        ("555-123-4567", "555-123-4567"),  # no exchange begins with 1
        ("212-555-0187", "<PHONE>"),
        ("a.b+c@mail.example.com, user@163.com。", "<EMAIL>, <EMAIL>。"),
        ("邮箱user@qq.com电话", "邮箱<EMAIL>电话"),
        ("身份证11010519491231002X。", "身份证<ID_NUMBER>。"),
        ("6222021234567890128", "<BANK_CARD>"),
        ("卡号 4111 1111 1111 1111", "卡号 <BANK_CARD>"),
        ("6222021234567890127", "6222021234567890127"),
        ("3782 822463 10005", "<BANK_CARD>"),
        ("212.94.201.10 answers", "<IP> answers"),
        ("from 93.184.216.34 and 2606:2800:220:1::1 ok", "from <IP> and <IP> ok"),
    ],
)
def test_personal_data_is_replaced(text, wanted):
    assert redacted(text) == wanted
    if text != wanted:
        assert np.logical_or.reduce([w[0] for w in pii.likely(Batch([text])).values()])


@pytest.mark.parametrize(
    "text",
    [
        "11010519491231002X1 and 110105194912310021",  # too long; wrong check digit
        "110105194913310025",  # month 13
        "4111 1111 1111 1112",  # Luhn fails
        "订单号202301151234567890，价格1234567元",
        "2023-01-15 10:20:30 and 12:30:45",
        "1,234,567.89 and 3.14159265358979",
        "ISBN 978-7-111-21382-6",
        "192.168.1.17 and 10.0.0.1 and 203.0.113.7 and 2001:db8::1 and fe80::1",
        "version v1.2.3.4, mask 255.255.255.0, host 127.0.0.1, 999.1.1.1",
        "std::vector<int> a::b",
        "@user and foo@bar",
        "http://a.com/13812345678",
        "2020-2021",
        "### 4.2.2.1. Installation\n4.2.2.1 Upgrades\n 12.3.1.7. 安装",
        "3526 2021-07-25 20:43",
        "0000000000000000",
    ],
)
def test_other_numbers_stay(text):
    assert redacted(text) == text


@given(st.text("0123456789 -.:@aF+()中", max_size=40))
def test_what_the_patterns_find_is_likely(text):
    batch = Batch(["7", text, ""])
    likely = pii.likely(batch)
    for kind in PII_KINDS:
        if redacted(text, kind) != text:
            assert likely[kind][1]  # a neighbour may be looked at in vain


def test_only_the_kinds_asked_for():
    text = "13812345678 user@163.com"
    assert redacted(text, "email") == "13812345678 <EMAIL>"
    assert redacted(text, "phone") == "<PHONE> user@163.com"


def test_what_was_replaced_is_counted():
    counts: Counter[str] = Counter()
    redact("13812345678, 13912345678, a@b.cn", PII_KINDS, counts)
    assert counts == {"phone": 2, "email": 1}


def test_check_digit_of_an_identity_number():
    # The example of GB 11643-1999.
    assert id_number("11010519491231002X")
    assert id_number("440524188001010014")
    assert not any(id_number(f"11010519491231002{d}") for d in range(10))


def test_luhn():
    # 7992739871 needs the check digit 3 in the textbooks; cards have more digits.
    assert bank_card("5500005555555559")
    assert not bank_card("5500005555555558")
    assert not bank_card("411111111111")
