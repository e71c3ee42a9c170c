import unicodedata

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.config import TextConfig
from semid_transforms.text import clean, clean_paths, join_paths, render


def cleaned(text: str | None) -> str:
    return clean(pa.array([text], pa.string()))[0].as_py()


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("plain", "plain"),
        (None, ""),
        ("", ""),
        ("  a \t\r\n b\u00a0\u2003c\u2028 ", "a b c"),
        ("a\x00b\x01c\x7fd\x85e", "a b c d e"),
        ("one<br>two<BR/>three", "one two three"),
        ("<p class='x'>soft <b>bold</b>ly</p>", "soft boldly"),
        ("H<sub>2</sub>O", "H2O"),
        ("<a href=\"x>y\" title='<'>link</a>", "link"),
        ("<script async>if (a<b) { x('</p>') }</script >rest", "rest"),
        ("<style>p > a { color: red }</style>rest", "rest"),
        ("a<!-- <b>no</b>\nno -->b", "a b"),
        ("<!DOCTYPE html><?xml version='1.0'?><![CDATA[in]]>", "in"),
        ("<o:p>word</o:p>", "word"),
        ("Fish &amp; chips &#163;5 &eacute;", "Fish & chips £5 é"),
        ("&lt;b&gt;bold&lt;/b&gt; &amp;lt;i&amp;gt;deep", "bold deep"),
        ("AT&T &unknown; &", "AT&T &unknown; &"),
        ("&#0;&#xD800;&nbsp;x", "\ufffd\ufffd x"),
        ("a < b and c > d", "a < b and c > d"),
        ("a <b and c> d", "a <b and c> d"),
        ("if x<y && y>z", "if x<y && y>z"),
        ("1 &lt; 2", "1 < 2"),
        ("I <3 you", "I <3 you"),
        ("e\u0301 \ufb01", "é \ufb01"),
        ("soft\u00adhyphen zero\u200bwidth \ufeffmark", "softhyphen zerowidth mark"),
        ("👨\u200d👩\u200d👧 🇩🇪 👍🏽", "👨\u200d👩\u200d👧 🇩🇪 👍🏽"),
        ("שָׁלוֹם \u200fعربي\u200e", unicodedata.normalize("NFC", "שָׁלוֹם \u200fعربي\u200e")),
    ],
)
def test_clean(raw, expected):
    assert cleaned(raw) == expected


@settings(deadline=None)
@given(st.lists(st.none() | st.text() | st.sampled_from(["<b>", "a&amp;b ", " < ", "<br >x"])))
def test_a_row_is_cleaned_the_same_beside_any_other_rows(texts):
    together = clean(pa.array(texts, pa.string())).to_pylist()
    assert together == [cleaned(text) for text in texts]


@settings(deadline=None)
@given(st.text())
def test_clean_text_is_composed_folded_and_trimmed(text):
    result = cleaned(text)
    assert unicodedata.is_normalized("NFC", result)
    assert result == result.strip(" ")
    assert "  " not in result
    assert not any(unicodedata.category(c) in ("Cc", "Zl", "Zp") for c in result)


def test_sliced_columns_are_cleaned_as_what_they_show():
    column = pa.array(["é<b>", "x  y", None, "z"]).slice(1, 2)
    assert clean(column).to_pylist() == ["x y", ""]


@pytest.mark.parametrize(
    "odd", ["a<b>", "a&amp;b", "a  b", "a\tb", "a\x7fb", "a\u00a0b", "e\u0301"]
)
def test_what_one_text_needs_is_seen_among_plain_ones(odd):
    plain = ["plain text ", " plain", "~", ""]
    assert clean(pa.array([*plain, odd, *plain])).to_pylist() == [
        *(text.strip() for text in plain),
        cleaned(odd),
        *(text.strip() for text in plain),
    ]
    assert cleaned(odd) != odd


def test_a_huge_text_passes_through():
    text = "<p>word &amp; word</p> " * 500_000
    assert cleaned(text) == ("word & word " * 500_000).strip()


def test_repeated_escapes_do_not_cost_quadratic_time():
    assert cleaned("&" + "amp;" * 200_000).startswith("&amp;amp;")


def test_paths_lose_blank_parts():
    paths = pa.array([["Home ", " ", "<b>Bed</b>", None], None, [], ["&nbsp;"], ["x"]])
    assert clean_paths(paths).to_pylist() == [["Home", "Bed"], None, None, None, ["x"]]
    assert clean_paths(paths.slice(4)).to_pylist() == [["x"]]
    assert clean_paths(paths.slice(5)).to_pylist() == []


def test_paths_are_joined():
    assert join_paths(pa.array([["a", "b"], None, ["c"]])).to_pylist() == ["a > b", "", "c"]


def column(*values: str) -> pa.Array:
    return pa.array(values, pa.string())


def test_parts_are_sentences():
    fields = {"title": column("Soap", "Really?", "", ""), "brand": column("Acme", "B.", "C", "")}
    rendered = render(fields, TextConfig(parts=("{title}", "{brand}", "{title}")))
    assert rendered.to_pylist() == ["Soap. Acme. Soap", "Really? B. Really?", "C", ""]


def test_a_part_without_any_field_is_left_out_with_its_words():
    fields = {"title": column("Soap", "Soap", ""), "brand": column("Acme", "", "Acme")}
    config = TextConfig(parts=("{title}", "made by {brand}", "{{{title} - {brand}}}"))
    assert render(fields, config).to_pylist() == [
        "Soap. made by Acme. {Soap - Acme}",
        "Soap. {Soap - }",
        "made by Acme. { - Acme}",
    ]


def test_folding_does_not_touch_what_a_field_says():
    fields = {"title": column("a"), "brand": column("")}
    assert render(fields, TextConfig(parts=("x {brand} {title} y",))).to_pylist() == ["x a y"]
