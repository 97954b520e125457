"""An inspection to show, and how the tests read what is shown."""

import io
from html.parser import HTMLParser

from rich.console import Console

from hf_peft_recipes.report.inspection import inspection_view
from hf_peft_recipes.report.stretches import LONG_ROW_TOKENS

VOID = {"meta", "input", "br"}
HISTOGRAM = {"edges": [0, 64, 128, 192, 256], "counts": [40, 10, 0, 5]}


def token(text, supervised=False, special=False, id=7):
    return {"id": id, "text": text, "supervised": supervised, "special": special}


def row(*tokens, **more):
    return {"place": "chats.jsonl:17", "tokens": list(tokens), **more}


CHAT = row(
    token("<|im_start|>", special=True), token("user"), token("\n"), token("Say"), token(" hi  "),
    token("<|im_end|>", special=True), token("\n"), token("  Hi", True), token("!\n", True),
    token("<|im_end|>", True, True, id=3), token("\n"),
    length=11, supervised=3, cuts=[],
)  # fmt: skip
FULL = {
    "recipe": "lora", "dataset": "chats.jsonl", "format": "messages", "model": "tiny", "template": "chat template",
    "loss_on": "assistant", "max_length": 1024, "fingerprint": "sha256:ab", "columns": {"prompt": "question"},
    "splits": {"train": 7473, "held_out": 200},
    "checks": [
        {"name": "stop token", "ok": True, "detail": "<|im_end|> (3)"},
        {"name": "room", "ok": False, "detail": "9 rows are cut", "fix": "raise max_length"},
        {"name": "template", "ok": None},
    ],
    "ledger": {
        "rows": {"kept": 7000, "split": 20, "truncated": 0, "dropped": 3}, "tokens": {"total": 900000, "supervised": 400000},
        "reasons": {"'answer' is null, not text": 3}, "lengths": {"median": 120, "p95": 300, "max": 2000},
        "supervised_lengths": {"median": 40, "p95": 100, "max": 700}, "max_length": 128,
        "duplicates": {"validation": {"exact": 0, "normalized": 1}}, "lengths_histogram": HISTOGRAM,
    },
    "rows": [CHAT],
}  # fmt: skip


def printed(inspection, width=100, **console):
    out = io.StringIO()
    Console(file=out, width=width, highlight=False, **console).print(inspection_view(inspection))
    return out.getvalue()


def coloured(inspection, width=100):
    return printed(inspection, width, force_terminal=True, color_system="standard", no_color=False)


def rows_of(inspection):
    """Return what stands below the legend."""
    return printed(inspection).partition("‖cut at N‖\n")[2]


class Page(HTMLParser):
    """Reads a page; fails on a tag that is closed by another, or never."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.texts = [], [], {}
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        for tag in set(self.open):
            self.texts[tag] = self.texts.get(tag, "") + data

    def all(self, tag, kind=None):
        return [attrs for name, attrs in self.tags if name == tag and (kind is None or attrs.get("class") == kind)]


def long_row():
    masked = [token(f"m{n} ") for n in range(LONG_ROW_TOKENS)]
    learnt = [token(f"s{n} ", True) for n in range(LONG_ROW_TOKENS)]
    return row(*masked, *learnt, *[token("after ")] * 100, cuts=[400])
