"""Templates of questions to models: places in braces, filled in one pass."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path

from hf_peft_recipes.errors import UserError, did_you_mean
from hf_peft_recipes.feedback.record import Turns


def read_template(template: str, places: Collection[str]) -> str:
    """Return a template, which is a text with `{completion}`, or a file that holds one.

    Args:
        template: text or path.
        places: that are filled.

    Raises:
        UserError: it is neither, or names a place that there is not.
    """
    text = template
    if "{" not in template:
        try:
            text = Path(template).expanduser().read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8 text"
            raise UserError(f"template {template!r}: a text with {{completion}}, or a file of one ({reason})") from None
    if "{completion}" not in text:
        raise UserError("the template has no place {completion} for the answer")
    for place in re.findall(r"\{(\w+)\}", text):
        if place not in places:
            raise UserError(f"the template has a place {{{place}}}, which nothing fills{did_you_mean(place, places)}")
    return text


def fill(template: str, contents: Mapping[str, str]) -> str:
    """Return the template with its places filled, in one pass: what is filled in may itself hold such a place."""
    return re.sub(rf"\{{({'|'.join(contents)})\}}", lambda found: contents[found[1]], template)


def as_text(turns: Turns) -> str:
    """Return a conversation as one text; a single turn is as it is."""
    if len(turns) == 1:
        return turns[0]["content"]
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)
