"""What `inspect --html` writes: one page that needs nothing but itself."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from hf_peft_recipes.report.histogram import length_histogram
from hf_peft_recipes.report.inspection_facts import (
    DUPLICATES,
    check_facts,
    duplicate_facts,
    head_facts,
    ledger_facts,
    length_facts,
    reason_facts,
    row_name,
    row_summary,
    split_facts,
)
from hf_peft_recipes.report.inspection_style import STYLE
from hf_peft_recipes.report.stretches import Cut, Elision, Part, Stretch, Token, one_line, stretches

_VERDICTS = {
    True: ("ok", "✓ ok"),
    False: ("bad", "✗ failed"),
    None: ("unknown", "– not checked"),
}


def inspection_page(inspection: Mapping[str, Any]) -> str:
    """Return one HTML page of an inspection, without scripts; it can request nothing, and says so to the browser.

    Args:
        inspection: what `inspect --json` prints; what it lacks is left out.
    """
    named = [one_line(inspection[key]) for key in ("recipe", "dataset") if inspection.get(key)]
    title = escape(" on ".join(named) or "Inspection")
    rows: Sequence[Mapping[str, Any]] = inspection.get("rows") or ()
    body = [
        f"<header><h1>{title}</h1><p>Which tokens of the data carry loss.</p></header><main>",
        _head(inspection),
        _section("Checks", _checks(inspection)),
        '<div class="tables">',
        _section("Splits", _table(("split", "rows"), split_facts(inspection))),
        _section("Ledger of the training rows", _table(("", "number", "share"), ledger_facts(inspection))),
        _section("Left out", _table(("reason", "rows"), [fact[::-1] for fact in reason_facts(inspection)])),
        _section("Tokens a row", _table(("tokens", "median", "p95", "max"), length_facts(inspection))),
        _section(DUPLICATES, _table(("split", "exact", "normalized"), duplicate_facts(inspection))),
        "</div>",
        _section("Lengths", length_histogram(inspection.get("ledger") or {})),
        _section("Rows", _LEGEND + "".join(map(_row, rows)) if rows else ""),
        "</main>",
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # The second lock beside the escaping: no script and no request, whatever the data holds.
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f'<meta name="color-scheme" content="light dark">\n<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n'
        f"<body>\n{_lines(body)}\n</body>\n</html>\n"
    )


_LEGEND = (
    '<div class="legend"><p><mark>carries loss</mark> <span class="plain">no loss</span> '
    '<span class="special">special token</span> <mark><span class="special">special token with loss</span></mark> '
    '<span class="plain"><i>↵</i> line end</span> <span class="plain"><i>␣</i> blank at an edge</span> '
    '<strong class="cut">‖cut at 128‖</strong></p>'
    '<p><input type="checkbox" id="bounds"> <label for="bounds">show the bounds of every token '
    "(a row that is pointed at shows them too, and a token its id)</label></p></div>"
)


def _head(inspection: Mapping[str, Any]) -> str:
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in head_facts(inspection))
    return f"<dl>{facts}</dl>" if facts else ""


def _section(heading: str, body: str) -> str:
    return f"<section><h2>{heading}</h2>\n{body}</section>" if body else ""


def _checks(inspection: Mapping[str, Any]) -> str:
    items = []
    for check in check_facts(inspection):
        name, verdict = _VERDICTS[check.ok]
        detail = f' <span class="plain">{escape(check.detail)}</span>' if check.detail else ""
        fix = f'<br><span class="fix">→ {escape(check.fix)}</span>' if check.fix else ""
        items.append(
            f'<li><span class="{name}">{verdict}</span> <span><b>{escape(check.name)}</b>{detail}{fix}</span></li>'
        )
    return f'<ul class="checks">{"".join(items)}</ul>' if items else ""


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    head = "".join(f'<th scope="col">{heading}</th>' if heading else "<td></td>" for heading in headings)
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in cells)}</tr>'
        for name, *cells in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _row(row: Mapping[str, Any]) -> str:
    heading = f"<h3>{escape(row_name(row))} <small>{escape(row_summary(row))}</small></h3>"
    return f"<article>{heading}{''.join(_flows(row)) or '<p>no tokens</p>'}</article>\n"


def _flows(row: Mapping[str, Any]) -> Iterator[str]:
    running = ""
    for piece in stretches(row):
        if isinstance(piece, Cut):
            running += f'<strong class="cut">‖cut at {piece.position}‖</strong>'
        elif isinstance(piece, Stretch):
            running += _stretch(piece)
        elif isinstance(piece, Elision):
            summary = f"{len(piece.stretch.tokens):,} more tokens without loss"
            yield _flow(running)
            yield f"<details><summary>{summary}</summary>{_flow(_stretch(piece.stretch))}</details>"
            running = ""
    if running:
        yield _flow(running)


def _flow(running: str) -> str:
    return f'<div class="flow">{running}</div>' if running else ""


def _stretch(stretch: Stretch) -> str:
    tokens = "".join(map(_token, stretch.tokens))
    return f"<mark>{tokens}</mark>" if stretch.supervised else tokens


def _token(token: Token) -> str:
    title = "" if token.id is None else f' title="id {escape(one_line(token.id))}"'
    kind = ' class="special"' if token.special else ""
    return f"<span{kind}{title}>{''.join(map(_part, token.parts))}</span>"


def _part(part: Part) -> str:
    if not part.is_sign:
        return escape(part.text)
    # The line end itself stays outside the sign, so that the sign is not drawn over two lines.
    return "\n".join(f"<i>{escape(line)}</i>" if line else "" for line in part.text.split("\n"))


def _lines(parts: Sequence[str]) -> str:
    return "\n".join(part for part in parts if part)
