import re

import pytest
from inspection_samples import CHAT, FULL, HISTOGRAM, Page, long_row, printed, token

from hf_peft_recipes.report.histogram import length_histogram
from hf_peft_recipes.report.inspection_page import inspection_page
from hf_peft_recipes.report.inspection_style import DARK, LIGHT


def test_the_page_folds_what_the_terminal_elides():
    page = Page(inspection_page({"rows": [long_row()]}))
    assert "280 more tokens without loss" in page.texts["summary"]
    assert len(page.all("details")) == 2
    assert all(f"m{n} " in page.texts["article"] for n in range(61, 339)), "nothing is lost"
    assert not page.all("details")[0], "folded"


EVIL = "</span></div><script>alert(1)</script><img src=https://example.org/x onerror=\"alert('2')\">&amp;"


def test_data_cannot_write_the_page():
    evil = {
        **dict.fromkeys(("recipe", "dataset", "format", "model", "template", "loss_on", "max_length", "fingerprint"), EVIL),
        "columns": {EVIL: EVIL}, "splits": {EVIL: EVIL}, "checks": [{"name": EVIL, "ok": False, "detail": EVIL, "fix": EVIL}],
        "ledger": {"rows": {EVIL: EVIL}, "tokens": {"total": EVIL, "supervised": EVIL}, "reasons": {EVIL: 1},
                   "lengths": {"max": EVIL}, "duplicates": {EVIL: {"exact": EVIL}}},
        "rows": [{"place": EVIL, "index": EVIL, "length": EVIL, "supervised": EVIL, "tokens": [token(EVIL, id=EVIL)]}],
    }  # fmt: skip
    page = Page(inspection_page(evil))
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "img"})
    assert EVIL in page.texts["article"], "and it can still be read"
    assert page.all("span", None)
    assert {"title": f"id {EVIL}"} in page.all("span"), "as a title, unescaped by the reader"
    printed(evil)


def test_every_token_is_a_span_with_its_id():
    page = Page(inspection_page({"rows": [CHAT]}))
    titles = [attrs["title"] for attrs in page.all("span") if "title" in attrs]
    assert titles == ["id 7"] * 9 + ["id 3", "id 7"]
    html = inspection_page({"rows": [CHAT]})
    assert (
        '<mark><span title="id 7"><i>␣␣</i>Hi</span><span title="id 7">!<i>↵</i>\n</span>'
        '<span class="special" title="id 3">&lt;|im_end|&gt;</span></mark>' in html
    )


@pytest.mark.parametrize("inspection", [FULL, {}, {"rows": [CHAT, long_row()]}])
def test_the_page_is_one_page(inspection):
    html = inspection_page(inspection)
    page = Page(html)
    assert page.tags[0] == ("html", {"lang": "en"})
    assert (
        len(page.all("h1")) == html.count("<title>lora") + html.count("<title>Insp") + html.count("<title>chats") == 1
    )
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "img", "iframe", "object", "base", "a", "form"})
    for _, attrs in page.tags:
        assert not set(attrs) & {"src", "href", "srcset", "action", "style", "xlink:href"}
        assert not [name for name in attrs if name.startswith("on")]
    assert not re.search(r"https?:|url\(|@import|//", html)
    assert "default-src 'none'" in page.all("meta")[2]["content"]
    assert all(attrs.get("scope") in ("col", "row") for attrs in page.all("th"))


def test_the_page_without_colour():
    style = Page(inspection_page(FULL)).texts["style"]
    assert re.search(r"\bmark\{[^}]*text-decoration:underline", style)
    page = Page(inspection_page(FULL))
    assert "✗ failed" in page.texts["li"]
    assert [attrs["for"] for attrs in page.all("label")] == [attrs["id"] for attrs in page.all("input")]


def _luminance(colour):
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    dark, light = sorted((_luminance(one), _luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("colours", [LIGHT, DARK])
def test_every_colour_can_be_read(colours):
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    grounds = {"loss": ["page", "loss-page"], "special": ["special-page"], "bar": []}
    for name in ("text", "quiet", "loss", "special", "bad"):
        for ground in grounds.get(name, ["page", "panel"]):
            assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)
    assert contrast(colours["bar"], colours["page"]) >= 3


def test_every_colour_of_the_sheet_exists():
    style = Page(inspection_page({})).texts["style"]
    assert set(re.findall(r"var\(--([a-z-]+)\)", style)) == set(LIGHT) == set(DARK)


def test_histogram_bars_are_as_tall_as_their_counts():
    page = Page(length_histogram({"lengths_histogram": HISTOGRAM, "max_length": 160}))
    bars = page.all("rect")
    heights = [float(bar["height"]) for bar in bars]
    assert len(bars) == 3, "an empty bin has no bar"
    assert [height / heights[0] for height in heights] == pytest.approx([1, 10 / 40, 5 / 40], abs=0.001)
    feet = {round(float(bar["y"]) + float(bar["height"]), 1) for bar in bars}
    assert len(feet) == 1
    assert "192 to 256 tokens: 5 rows" in page.texts["title"]
    assert all(
        words in page.texts["text"] for words in ("0", "64", "256", "tokens a row", "rows", "40", "max_length 160")
    )
    (limit,) = page.all("line", "limit")
    third = float(bars[1]["x"]) + (float(bars[1]["x"]) - float(bars[0]["x"]))
    assert float(limit["x1"]) == pytest.approx(third - 0.5 + (float(bars[1]["width"]) + 1) / 2, abs=0.1)
    assert page.all("svg")[0]["aria-label"] == "55 rows by length, from 0 to 256 tokens"


@pytest.mark.parametrize(
    "histogram",
    [None, {}, {"edges": [], "counts": []}, {"edges": [0, 1], "counts": [0]}, {"edges": [0], "counts": [3]}],
)
def test_no_histogram_of_nothing(histogram):
    assert length_histogram({"lengths_histogram": histogram}) == ""
    assert "<svg" not in inspection_page({"ledger": {"lengths_histogram": histogram}})


def test_many_bins_have_few_labels():
    page = Page(length_histogram({"lengths_histogram": {"edges": list(range(0, 4100, 100)), "counts": [1] * 40}}))
    assert len(page.all("rect")) == 40
    assert len(page.all("text")) <= 6 + 2 + 2 + 1
