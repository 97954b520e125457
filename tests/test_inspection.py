import re
from html import unescape

import pytest
from inspection_samples import CHAT, FULL, Page, coloured, long_row, printed, row, rows_of, token

from hf_peft_recipes.report.inspection_facts import share
from hf_peft_recipes.report.inspection_page import inspection_page
from hf_peft_recipes.report.stretches import KEPT_TOKENS, LONG_ROW_TOKENS, Cut, Elision, Stretch, stretches, visible


def test_plain_marks_show_what_carries_loss():
    assert rows_of({"rows": [CHAT]}).splitlines()[1:] == [
        "chats.jsonl:17  11 tokens, 3 with loss (27.3%)",
        "‹<|im_start|>›user↵",
        "Say hi␣␣‹<|im_end|>›↵",
        "⟦␣␣Hi!↵",
        "‹<|im_end|>›⟧↵",
    ]


def test_colour_needs_no_brackets():
    text = coloured({"rows": [CHAT]})
    assert "⟦" not in text
    assert "\x1b[1;32m␣␣Hi!↵\x1b[0m\n" in text
    assert "\x1b[1;4;32m<|im_end|>\x1b[0m" in text, "a special token with loss"
    assert "\x1b[2muser↵\x1b[0m" in text


def test_no_color_marks_supervised_stretches_on_a_terminal(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    text = printed({"rows": [CHAT]}, force_terminal=True, color_system="standard")
    assert "⟦" in text
    assert "\x1b[32" not in text


def test_a_bracket_closes_before_the_line_end():
    assert "⟦yes↵⟧\nno" in printed({"rows": [row(token("yes\n", True), token("no"))]})


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mb", "a<U+001B>[31mb"),
        ("a\u202eb", "a<U+202E>b"),
        ("a\u2066b", "a<U+2066>b"),
        ("a\x07\x00\x9bb", "a<U+0007><U+0000><U+009B>b"),
        ("a\u200bb\ufeff", "a<U+200B>b<U+FEFF>"),
        ("a\u2028b", "a<U+2028>b"),
        ("\ud83d", "<U+D83D>"),
        ("\U000e0041", "<U+E0041>"),
        ("a\r\nb", "a␍↵\nb"),
        ("👩\u200d🔬", "👩\u200d🔬"),
        ("\u200d", "<U+200D>"),
        ("می\u200cروم", "می\u200cروم"),
        ("\ufffd", "\ufffd"),
        ("[bold]x[/bold] :smile:", "[bold]x[/bold] :smile:"),
    ],
)
def test_what_cannot_be_seen_is_shown(text, shown):
    assert "".join(part.text for part in visible(text)) == shown
    inspection = {"rows": [row(token(text))], "dataset": text, "checks": [{"name": text, "ok": False, "fix": text}]}
    assert shown in printed(inspection)
    page = inspection_page(inspection)
    page.encode()
    assert shown in "".join(Page(page).texts["article"])
    for char in "\x1b\x07\x00\x9b\u202e\u2066\u200b\ufeff\u2028\ud83d\U000e0041\r":
        assert char not in page + printed(inspection)


@pytest.mark.parametrize(
    ("texts", "shown"),
    [
        (["  ", " a", "b  c", " ", "  "], "␣␣␣ab  c␣␣␣"),
        (["   "], "␣␣␣"),
        (["\u00a0a\u00a0b"], "<U+00A0>a\u00a0b"),
        (["\n  ", "a"], "↵\n  a"),
        (["a\n", "  "], "a↵\n␣␣"),
        (["\u0301a"], "◌\u0301a"),
        (["a", "\u0301"], "a\u0301"),
        (["a", None], "a<id 7>"),
        (["", "", "界", "a", "", ""], "界a∅∅"),
        (["", ""], "∅∅"),
        (["\u064b", " "], "◌\u064b␣"),
        (["👩", "\u200d", "🔬"], "👩\u200d🔬"),
        (["a", "\u200d"], "a<U+200D>"),
    ],
)
def test_edges_of_stretches(texts, shown):
    (stretch,) = stretches(row(*map(token, texts)))
    assert "".join(token.text for token in stretch.tokens) == shown
    assert len(stretch.tokens) == len(texts)


def test_cuts_stand_where_the_row_is_cut():
    pieces = list(stretches(row(*[token("a", True)] * 10, cuts=[8, 4, 0, 10, 99])))
    assert [piece.position if isinstance(piece, Cut) else len(piece.tokens) for piece in pieces] == [4, 4, 4, 8, 2, 10]
    assert "⟦aaaa⟧‖cut at 4‖⟦aaaa⟧" in printed({"rows": [row(*[token("a", True)] * 8, cuts=[4])]})
    assert '<strong class="cut">‖cut at 4‖</strong>' in inspection_page({"rows": [row(*[token("a")] * 8, cuts=[4])]})


def test_long_rows_lose_only_the_middle_of_masked_stretches():
    pieces = list(stretches(long_row()))
    hidden = [len(piece.stretch.tokens) for piece in pieces if isinstance(piece, Elision)]
    assert hidden == [400 - 2 * KEPT_TOKENS] * 2, "the cut stands between two elisions, the short stretch is whole"
    shown = [piece for piece in pieces if isinstance(piece, Stretch)]
    assert sum(hidden) + sum(len(piece.tokens) for piece in shown) == 2 * LONG_ROW_TOKENS + 100
    assert sum(len(piece.tokens) for piece in shown if piece.supervised) == LONG_ROW_TOKENS
    text = printed({"rows": [long_row()]}, width=100_000)
    assert text.count(f"⋯ {400 - 2 * KEPT_TOKENS:,} tokens without loss elided ⋯") == 2
    assert "m59" in text
    assert "m60 " not in text
    assert "m339 " not in text
    assert "m340 " in text
    assert "‖cut at 400‖" in text
    assert all(f"s{n} " in text for n in range(LONG_ROW_TOKENS - 1))


def test_rows_of_common_length_are_whole():
    whole = row(*[token("m ")] * LONG_ROW_TOKENS)
    assert [len(piece.tokens) for piece in stretches(whole)] == [LONG_ROW_TOKENS]


def test_head_ledger_and_checks_on_a_terminal():
    text = printed(FULL)
    for words in (
        "recipe       lora", "columns      prompt = question", "train     7,473", "✓ ok", "stop token: <|im_end|> (3)",
        "✗ failed", "→ raise max_length", "- not checked", "tokens with loss  400,000   44.4%",
        "rows kept           7,000  >99.9%", "rows truncated          0    0.0%", "rows dropped            3   <0.1%",
        "3  'answer' is null, not text", "with loss      40  100    700", "validation      0           1",
    ):  # fmt: skip
        assert words in text


def test_a_check_that_went_well_needs_no_fix():
    checks = {"checks": [{"name": "room", "ok": True, "fix": "raise max_length"}]}
    assert "raise" not in printed(checks)
    assert "raise" not in inspection_page(checks)


def test_markup_of_the_data_is_no_markup():
    inspection = {
        "recipe": "[red]r", "dataset": "[/]", "splits": {"[b]": 1}, "checks": [{"name": "[i]n", "detail": "[/i]"}],
        "ledger": {"reasons": {"[u]why": 1}, "duplicates": {"[s]": {"exact": 1}}},
        "rows": [{"place": "[bold]p:1", "tokens": [token("[green]t[/green]")]}],
    }  # fmt: skip
    for text in (printed(inspection), coloured(inspection)):
        for words in ("[red]r", "[/]", "[b]", "[i]n", "[/i]", "[u]why", "[s]", "[bold]p:1", "[green]t[/green]"):
            assert words in text


@pytest.mark.parametrize(
    "inspection",
    [
        {},
        dict.fromkeys(FULL),
        *({key: value for key, value in FULL.items() if key != left_out} for left_out in FULL),
        {"ledger": dict.fromkeys(FULL["ledger"])},
        *({"ledger": {key: value}} for key, value in FULL["ledger"].items()),
        {"ledger": {"rows": {"kept": None}, "tokens": {"supervised": 3}, "lengths": {"max": 3}, "duplicates": {"a": None}}},
        {"checks": [{}], "splits": {"train": None}, "columns": {"prompt": None}},
        {"rows": [{}, {"index": 3, "tokens": None, "cuts": None}, {"tokens": [{}, {"id": 4}, {"text": "a"}]}]},
    ],
)  # fmt: skip
def test_what_is_missing_is_left_out(inspection):
    for text in (printed(inspection), coloured(inspection), "".join(Page(inspection_page(inspection)).texts.values())):
        assert "None" not in text


def test_an_empty_inspection_has_no_empty_headings():
    assert printed({}).strip() == ""
    assert not Page(inspection_page({})).all("h2")


def test_a_row_that_teaches_nothing_says_so():
    teaches_nothing = {"rows": [row(token("a"))]}
    assert "  1 token, none with loss\n" in printed(teaches_nothing)
    assert "none with loss" in inspection_page(teaches_nothing)


@pytest.mark.parametrize(
    ("number", "whole", "words"),
    [(0, 10, "0.0%"), (10, 10, "100.0%"), (1, 10_000, "<0.1%"), (9_999, 10_000, ">99.9%"), (1, 0, ""), (None, 3, "")],
)
def test_shares_do_not_round_to_none_or_all(number, whole, words):
    assert share(number, whole) == words


def test_the_views_write_the_same_rows():
    plain = printed({"rows": [CHAT]}, width=1000).splitlines()
    html = inspection_page({"rows": [CHAT]}).partition('<div class="flow">')[2].partition("</div>")[0]
    terminal = re.sub("[⟦⟧‹›]", "", "\n".join(plain[plain.index("Rows") + 4 :]))
    assert unescape(re.sub("<[^>]+>", "", html)).rstrip() == terminal
