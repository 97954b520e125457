"""What `inspect` shows on a terminal: the data's account, then every row with the tokens that carry loss."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.table import Table
from rich.text import Text

from hf_peft_recipes.report.inspection_facts import (
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
from hf_peft_recipes.report.stretches import Cut, Elision, Stretch, Token, stretches

MASKED, SUPERVISED, SPECIAL = "dim", "bold green", "cyan"
CUT, ELIDED, GOOD, BAD = "bold red", "italic yellow", "green", "bold red"
HEADING = "bold"


def inspection_view(inspection: Mapping[str, Any]) -> RenderableType:
    """Return what a rich console prints of an inspection; without colour, ⟦…⟧ marks the tokens that carry loss.

    Args:
        inspection: what `inspect --json` prints; what it lacks is left out.
    """
    blocks = [
        _pairs(head_facts(inspection)),
        _section("Splits", _figures("lr", ("", ""), split_facts(inspection))),
        _section("Checks", _checks(inspection)),
        _section("Ledger of the training rows", _figures("lrr", ("", "", ""), ledger_facts(inspection))),
        _section("Left out", _figures("rl", ("", ""), reason_facts(inspection))),
        _section("Tokens a row", _figures("lrrr", ("", "median", "p95", "max"), length_facts(inspection))),
        _section(
            "Rows that are in training too", _figures("lrr", ("", "exact", "normalized"), duplicate_facts(inspection))
        ),
    ]
    rows: Sequence[Mapping[str, Any]] = inspection.get("rows") or ()
    if rows:
        blocks.append(_section("Rows", _Legend()))
        blocks += [_section(row_name(row), _RowText(row), row_summary(row)) for row in rows]
    shown = [block for block in blocks if block is not None]
    return Group(*(part for number, block in enumerate(shown) for part in ((Text(), block) if number else (block,))))


class _Legend:
    """Says how the rows mark what they mark, which depends on the console."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        marks = _needs_marks(console)
        yield Text.assemble(
            ("⟦carries loss⟧" if marks else "carries loss", SUPERVISED),
            ("  no loss  ", MASKED),
            ("‹special token›" if marks else "special token", SPECIAL),
            ("  ↵ line end  ␣ edge blank  ", MASKED),
            ("‖cut at N‖", CUT),
        )


class _RowText:
    """The tokens of one row as running text."""

    def __init__(self, row: Mapping[str, Any]) -> None:
        self._row = row

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        marks = _needs_marks(console)
        text = Text(tab_size=4, overflow="fold")
        for piece in stretches(self._row):
            if isinstance(piece, Cut):
                text.append(f"‖cut at {piece.position}‖", CUT)
            elif isinstance(piece, Elision):
                text.append(f" ⋯ {len(piece.stretch.tokens):,} tokens without loss elided ⋯ ", ELIDED)
            else:
                text.append_text(_stretch(piece, marks))
        if text.plain.endswith("\n"):
            text.right_crop(1)
        yield text if text else Text("no tokens", ELIDED)


def _stretch(stretch: Stretch, marks: bool) -> Text:
    text = Text()
    pieces = itertools.chain.from_iterable(_styled(token, stretch.supervised, marks) for token in stretch.tokens)
    # One colour code a stretch, not one a token: the output is a tenth as long.
    for style, group in itertools.groupby(pieces, lambda piece: piece[1]):
        text.append("".join(words for words, _ in group), style)
    if not marks or not stretch.supervised:
        return text
    # The bracket closes on the line that it closes, not at the head of the next.
    ends_line = text.plain.endswith("\n")
    if ends_line:
        text.right_crop(1)
    return Text.assemble(("⟦", SUPERVISED), text, ("⟧", SUPERVISED), "\n" if ends_line else "")


def _styled(token: Token, supervised: bool, marks: bool) -> Iterator[tuple[str, str]]:
    style = SUPERVISED if supervised else MASKED
    if token.special:
        style = f"{SUPERVISED} underline" if supervised else SPECIAL
    if marks and token.special:
        yield "‹", style
    for part in token.parts:
        # Escapes are told from the data's own characters, which could spell the same.
        yield part.text, f"{style} reverse" if part.is_sign and "<" in part.text else style
    if marks and token.special:
        yield "›", style


def _needs_marks(console: Console) -> bool:
    return console.color_system is None or console.no_color


def _section(heading: str, body: RenderableType | None, note: str = "") -> RenderableType | None:
    if body is None:
        return None
    line = Text(heading, HEADING)
    return Group(line.append(f"  {note}", "not bold") if note else line, body)


def _pairs(facts: Sequence[tuple[str, str]]) -> RenderableType | None:
    if not facts:
        return None
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts:
        table.add_row(Text(name, MASKED), Text(value))
    return table


def _figures(sides: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> RenderableType | None:
    if not rows:
        return None
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=any(headings), header_style=MASKED)
    for side, heading in zip(sides, headings, strict=True):
        table.add_column(Text(heading), justify="left" if side == "l" else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _checks(inspection: Mapping[str, Any]) -> RenderableType | None:
    checks = check_facts(inspection)
    if not checks:
        return None
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in checks:
        verdict = {True: Text("✓ ok", GOOD), False: Text("✗ failed", BAD), None: Text("- not checked", MASKED)}
        words = Text(check.name)
        if check.detail:
            words.append(f": {check.detail}", MASKED)
        if check.fix:
            words.append(f"\n→ {check.fix}", "not dim")
        table.add_row(verdict[check.ok], words)
    return table
