"""The stop test: what is trained on is what will be served, and the model learns to stop. Made before any training."""

from collections.abc import Sequence
from dataclasses import dataclass

from hf_peft_recipes.data.formats import BadRowError, Example
from hf_peft_recipes.data.rendering import IGNORED, Renderer, TokenRow
from hf_peft_recipes.errors import UserError

SAMPLE = 64
"""Rows that are looked at; a template treats all rows of one shape alike."""


@dataclass(frozen=True)
class Check:
    """One thing that must hold between training and serving."""

    name: str
    ok: bool
    detail: str
    fix: str = ""
    """What `--fix` does about it; empty where it can do nothing."""


def check_serving(renderer: Renderer, examples: Sequence[Example]) -> list[Check]:
    """Return what holds between training and serving for these examples, and what does not.

    Args:
        renderer: made for the run's tokenizer and the ids on which generation stops.
        examples: some of those that are trained on.
    """
    made = renderer.rows(examples)
    pairs = [(example, row) for example, row in zip(examples, made, strict=True) if isinstance(row, TokenRow)]
    answers = [(example, row) for example, row in pairs if example.text is None]
    checks = [_pad(renderer), _begins_once(renderer, [row for _, row in pairs])]
    if answers:
        checks += [_as_served(renderer, answers), _stops(renderer, [row for _, row in answers])]
    return checks


def require_serving(renderer: Renderer, examples: Sequence[Example], fixes: bool) -> list[Check]:
    """Return the checks once all hold, after mending what can be mended where that is wanted.

    Args:
        renderer: it is changed where `fixes` says so, and its tokenizer's end token with it.
        examples: some of those that are trained on.
        fixes: whether to mend.

    Raises:
        UserError: a check that does not hold.
    """
    checks = check_serving(renderer, examples)
    if fixes and not all(check.ok for check in checks):
        _mend(renderer, [check.name for check in checks if not check.ok], examples)
        checks = check_serving(renderer, examples)
    require(checks)
    return checks


def require(checks: Sequence[Check]) -> None:
    """Raise a UserError that names every check which does not hold."""
    failed = [check for check in checks if not check.ok]
    if failed:
        told = "; ".join(f"{check.name}: {check.detail}" for check in failed)
        hint = f" (--fix: {'; '.join(check.fix for check in failed)})" if all(check.fix for check in failed) else ""
        raise UserError(f"what is trained on is not what will be served: {told}{hint}")


def _as_served(renderer: Renderer, answers: Sequence[tuple[Example, TokenRow]]) -> Check:
    name = "a prompt is trained on as it is served"
    for example, row in answers:
        try:
            served = renderer.prompt(example)
        except BadRowError as error:
            return Check(name, False, str(error))
        if row.input_ids[: len(served)] != served:
            tail = renderer.tokenizer.decode(served[-12:])
            return Check(
                name, False, f"before an answer the template serves …{tail!r}, which its conversations do not hold",
                "train the last answer of each conversation behind what is served",
            )  # fmt: skip
    return Check(name, True, f"token for token, in {len(answers)} rows")


def _stops(renderer: Renderer, rows: Sequence[TokenRow]) -> Check:
    name, tokenizer = "an end token that generation stops on carries loss", renderer.tokenizer
    running = [row for row in rows if not row.stops]
    if running:
        found = _last_special(renderer, running[0])
        if found is not None:
            word = tokenizer.convert_ids_to_tokens(found)
            return Check(
                name,
                False,
                f"answers end with {word!r}, on which generation does not stop",
                f"let {word!r} end answers",
            )
        fix = f"add {tokenizer.eos_token!r} behind every answer" if tokenizer.eos_token_id is not None else ""
        return Check(name, False, "nothing stands behind an answer: the model would never stop", fix)
    ends = {next(label for label in reversed(row.labels) if label != IGNORED) for row in rows}
    return Check(name, True, ", ".join(f"{tokenizer.convert_ids_to_tokens(end)} ({end})" for end in sorted(ends)))


def _begins_once(renderer: Renderer, rows: Sequence[TokenRow]) -> Check:
    name, begin = "a row begins with one start token at most", renderer.tokenizer.bos_token_id
    doubled = begin is not None and any(row.input_ids[:2] == [begin, begin] for row in rows)
    detail = "it stands twice: in the data or the template, and once more from the tokenizer" if doubled else "it does"
    return Check(name, not doubled, detail)


def _pad(renderer: Renderer) -> Check:
    tokenizer = renderer.tokenizer
    alike = tokenizer.pad_token_id == tokenizer.eos_token_id
    detail = "the same token: padding is told apart by labels and mask" if alike else "two tokens"
    return Check("padding is never taken for an end", tokenizer.pad_token_id is not None, f"pad and end are {detail}")


def _mend(renderer: Renderer, failed: Sequence[str], examples: Sequence[Example]) -> None:
    rows = [row for row in renderer.rows(examples) if isinstance(row, TokenRow)]
    if any("as it is served" in name for name in failed):
        renderer.as_served = True
    running = [row for row in rows if not row.stops]
    if any("end token" in name for name in failed) and running:
        found = _last_special(renderer, running[0])
        if found is None:
            renderer.closes = True
            found = renderer.tokenizer.eos_token_id
        # The tokenizer is saved with the run, so whatever serves it stops where training did.
        renderer.tokenizer.eos_token = renderer.tokenizer.convert_ids_to_tokens(found)
        renderer.stop_ids |= {found}


def _last_special(renderer: Renderer, row: TokenRow) -> int | None:
    """Return the special token that stands behind the last answer, blanks left aside; None when a word does."""
    special = set(renderer.tokenizer.all_special_ids) | set(renderer.tokenizer.added_tokens_decoder)
    for token in reversed([token for token, label in zip(row.input_ids, row.labels, strict=True) if label != IGNORED]):
        if token in special:
            return token
        if renderer.tokenizer.decode([token]).strip():
            return None
    return None
