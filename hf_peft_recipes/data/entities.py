"""Tagged tokens as text: `Empire State Building: location; ESB: location`."""

import re
from collections.abc import Sequence

from hf_peft_recipes.data.records import BadRowError

NO_ENTITIES = "none"
"""What is written where a sentence has no entities."""

_TAG = re.compile(r"(?P<place>[BIESLU])-(?P<kind>.+)")


def entities(tokens: Sequence[str], tags: Sequence[str]) -> list[tuple[str, str]]:
    """Return the entities of a sentence in order, each as its tokens joined by blanks and its kind.

    Args:
        tokens: the words.
        tags: one for each, in BIO, IOB (an entity may begin with I-) or BIOES/BILOU (E and L end one, S and U are one).

    Raises:
        BadRowError: another number of tags than of tokens, or a tag of no such scheme.
    """
    if len(tokens) != len(tags):
        raise BadRowError(f"{len(tokens)} tokens have {len(tags)} tags")
    spans = list[tuple[list[str], str]]()
    open_kind = None
    for number, (token, tag) in enumerate(zip(tokens, tags, strict=True), 1):
        if tag == "O":
            open_kind = None
            continue
        found = _TAG.fullmatch(tag)
        if not found:
            raise BadRowError(f"the tag {tag!r} of token {number} ({token!r}) is neither O nor B-kind or I-kind")
        place, kind = found["place"], found["kind"]
        if place in "IEL" and open_kind == kind:
            spans[-1][0].append(token)
        else:
            spans.append(([token], kind))
        open_kind = None if place in "ELSU" else kind
    return [(" ".join(words), kind) for words, kind in spans]


def tag_text(tokens: Sequence[str], tags: Sequence[str]) -> str:
    """Return what a sentence is answered with: its entities, or, where no tag is of an entity, all tags as they are.

    Raises:
        BadRowError: as `entities` raises it.
    """
    if len(tokens) == len(tags) and not any(tag == "O" or _TAG.fullmatch(tag) for tag in tags):
        # Parts of speech and their kin.
        return " ".join(tags)
    return entity_text(tokens, tags)


def entity_text(tokens: Sequence[str], tags: Sequence[str]) -> str:
    """Return the entities of a sentence as one line, `none` where there are none; see `entities`."""
    return "; ".join(f"{words}: {kind}" for words, kind in entities(tokens, tags)) or NO_ENTITIES


def read_entities(text: str) -> list[tuple[str, str]]:
    """Return what `entity_text` wrote, each entity as its words and its kind; of other text, all of it without a kind.

    No text, as a model may answer, has no entities.
    """
    found, rest = list[tuple[str, str]](), ""
    for piece in text.strip().split("; "):
        # A piece without a kind is the beginning of words that hold a semicolon.
        words, mark, kind = (rest + piece).rpartition(": ")
        rest = "" if mark else f"{rest}{piece}; "
        if mark:
            found.append((words.strip(), kind.strip()))
    rest = rest.removesuffix("; ")
    return found if rest == "" or (not found and rest == NO_ENTITIES) else [*found, (rest, "")]
