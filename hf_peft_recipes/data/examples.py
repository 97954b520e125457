"""What a row means once its format is known: every row becomes one `Example`, or a `BadRowError` that says why not."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hf_peft_recipes.data.columns import Template, row_value, type_of
from hf_peft_recipes.data.conversations import Turn, check_order, read_tools, read_turns, unsupervised
from hf_peft_recipes.data.entities import tag_text
from hf_peft_recipes.data.records import BadRowError, Row

__all__ = ["BadRowError", "Example", "Format", "as_boolean"]

_TRANSCRIPT = re.compile(r"\n\n(Human|Assistant):")
"""How Anthropic's hh-rlhf writes conversations as one text."""

_BOOLEANS = {"true": True, "false": False, "1": True, "0": False}


@dataclass(frozen=True)
class Example:
    """One row: a conversation, or plain text."""

    messages: tuple[Turn, ...] = ()
    supervised_from: int = 0
    """Assistant turns before this index are context, not targets."""
    text: str | None = None
    rejected: tuple[Turn, ...] = ()
    """Preference data: the turns that were refused, in place of those from `supervised_from` on."""
    label: bool | None = None
    """Binary feedback: whether the answer is wanted."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """JSON schemas of the tools that the model is offered."""
    tokens: tuple[str, ...] = ()
    """Tagged data: the words of the sentence."""
    tags: tuple[str, ...] = ()
    """And the tag of each."""

    @property
    def is_prompt(self) -> bool:
        """Whether nothing of it is an answer to learn from: the model is asked, and no more is known."""
        return bool(self.messages) and self.supervised_from >= len(self.messages)

    @property
    def reference(self) -> str | None:
        """The last answer, None for plain text and for a prompt alone."""
        if self.is_prompt:
            return None
        answers = (turn["content"] for turn in reversed(self.messages) if turn["role"] == "assistant")
        return next(answers, None)

    @property
    def refused(self) -> "Example":
        """Of preference data, the conversation as it was refused."""
        return replace(self, messages=(*self.messages[: self.supervised_from], *self.rejected), rejected=())

    @property
    def before_reference(self) -> tuple[Turn, ...]:
        """The turns before the last answer: what the model is given when it is to produce that."""
        if self.is_prompt:
            return self.messages
        last = max((index for index, turn in enumerate(self.messages) if turn["role"] == "assistant"), default=0)
        return self.messages[:last]


@dataclass(frozen=True)
class Format:
    """A way of laying out rows: the column, or the template, for each role that it has."""

    name: str
    columns: Mapping[str, str]
    joins_exactly: bool = False
    """Whether prompt and completion were cut to be joined without a separator, as TRL's prompt-completion data are."""
    templates: Mapping[str, Template] = field(default_factory=dict)

    def example(self, row: Row) -> Example:
        """Return the row as an example.

        Raises:
            BadRowError: a value is missing or of the wrong type, or the turns make no conversation.
        """
        return _BUILDERS.get(self.name, _pair)(_Values(self, row))


class _Values:
    """The values of one row by role."""

    def __init__(self, layout: Format, row: Row) -> None:
        self._layout, self._row = layout, row

    def has(self, role: str) -> bool:
        return role in self._layout.templates or role in self._layout.columns

    def column(self, role: str) -> str:
        return self._layout.columns.get(role, role)

    def get(self, role: str) -> Any:
        if role in self._layout.templates:
            return self._layout.templates[role].fill(self._row)
        return row_value(self._row, self._layout.columns[role])

    def optional(self, role: str) -> Any:
        """Return the value of a role that rows may lack, None where it is missing."""
        if role in self._layout.templates:
            return self.get(role)
        return self._row.get(self._layout.columns[role]) if role in self._layout.columns else None

    def text(self, role: str) -> str:
        return _text(self.get(role), self.column(role))

    def turns(self, role: str, speaker: str) -> tuple[Turn, ...]:
        """Return a conversation, or a text as one turn of `speaker`."""
        value = self.get(role)
        if isinstance(value, (list, tuple)):
            return read_turns(value, self.column(role))
        if speaker == "assistant" and isinstance(value, (int, float)) and not isinstance(value, bool):
            value = str(value) if math.isfinite(value) else None
        return ({"role": speaker, "content": _text(value, self.column(role))},)

    def system(self, turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
        """Return the turns to be put before these: the system turn of a column of its own, where there is one."""
        value = self.optional("system")
        if value is None or value == "":
            return ()
        turn = {"role": "system", "content": _text(value, self.column("system"))}
        if turns and turns[0]["role"] == "system":
            if turns[0]["content"] != turn["content"]:
                raise BadRowError(f"the row has a system turn and another text in {self.column('system')!r}")
            return ()
        return (turn,)

    def tools(self) -> tuple[Mapping[str, Any], ...]:
        return read_tools(self.optional("tools"), self.column("tools"))


def _text(value: Any, column: str) -> str:
    if not isinstance(value, str):
        raise BadRowError(f"{column!r} is {type_of(value)}, not text")
    if not value.strip():
        raise BadRowError(f"{column!r} is empty")
    return value


def _plain(values: _Values) -> Example:
    return Example(text=values.text("text"))


def _messages(values: _Values) -> Example:
    value = values.get("messages")
    turns = read_turns(value, values.column("messages"))
    system = values.system(turns)
    check_order((*system, *turns))
    start = unsupervised(value, turns)
    return Example((*system, *turns), len(system) + start if start else 0, tools=values.tools())


def _pair(values: _Values) -> Example:
    prompt = values.turns("prompt", "user")
    extra = values.optional("input")
    if extra is not None and extra != "":
        addition = _text(extra, values.column("input"))
        prompt = (*prompt[:-1], {**prompt[-1], "content": f"{prompt[-1]['content']}\n\n{addition}"})
    prompt = (*values.system(prompt), *prompt)
    messages = (*prompt, *values.turns("completion", "assistant"))
    check_order(messages)
    return Example(messages, len(prompt), tools=values.tools())


def _prompt_only(values: _Values) -> Example:
    prompt = values.turns("prompt", "user")
    prompt = (*values.system(prompt), *prompt)
    # An answer must be able to follow.
    check_order((*prompt, {"role": "assistant", "content": ""}))
    return Example(prompt, len(prompt), tools=values.tools())


def _feedback(values: _Values) -> Example:
    label = as_boolean(values.get("label"))
    if label is None:
        value = values.get("label")
        shown = "null" if value is None else repr(value)[:40]
        raise BadRowError(f"{values.column('label')!r} is {shown}, neither true nor false")
    pair = _pair(values)
    return Example(pair.messages, pair.supervised_from, label=label, tools=pair.tools)


def as_boolean(value: Any) -> bool | None:
    """Return a value as true or false, None when it is neither; CSV writes them as text, Parquet often as 0 and 1."""
    return _BOOLEANS.get(str(value).strip().lower()) if isinstance(value, (bool, int, str)) else None


def _preference(values: _Values) -> Example:
    chosen, rejected = values.get("chosen"), values.get("rejected")
    names = f"{values.column('chosen')!r} and {values.column('rejected')!r}"
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise BadRowError(f"{names} are {type_of(chosen)} and {type_of(rejected)}, not alike")
    if not values.has("prompt") and isinstance(chosen, str):
        texts = _text(chosen, values.column("chosen")), _text(rejected, values.column("rejected"))
        prompt, wanted, refused = _parted_texts(*texts, names)
    else:
        wanted, refused = values.turns("chosen", "assistant"), values.turns("rejected", "assistant")
        if not values.has("prompt"):
            prompt, wanted, refused = _parted(wanted, refused, names)
        elif wanted[0]["role"] != "assistant":
            # UltraFeedback and its kin: the answers are whole conversations, and the prompt is given besides.
            given = values.turns("prompt", "user")
            prompt, wanted, refused = _parted(wanted, refused, names)
            if given[-1]["content"] not in [turn["content"] for turn in prompt]:
                raise BadRowError(f"{names} do not begin with {values.column('prompt')!r}")
        else:
            prompt = values.turns("prompt", "user")
    prompt = (*values.system(prompt), *prompt)
    if wanted == refused:
        raise BadRowError(f"{names} are the same")
    check_order((*prompt, *wanted), "chosen: ")
    check_order((*prompt, *refused), "rejected: ")
    return Example((*prompt, *wanted), len(prompt), rejected=refused, tools=values.tools())


_Parted = tuple[tuple[Turn, ...], tuple[Turn, ...], tuple[Turn, ...]]


def _parted(chosen: tuple[Turn, ...], rejected: tuple[Turn, ...], names: str) -> _Parted:
    """Return the common leading turns as the prompt, and what follows them on either side."""
    if chosen == rejected:
        raise BadRowError(f"{names} are the same")
    length = next(
        (index for index, (one, other) in enumerate(zip(chosen, rejected, strict=False)) if one != other),
        min(len(chosen), len(rejected)),
    )
    if not length:
        raise BadRowError(f"{names} have no first turn in common that could be the prompt")
    if length == min(len(chosen), len(rejected)):
        raise BadRowError(f"one of {names} is only the beginning of the other")
    if any(side[length]["role"] not in ("assistant", "tool") for side in (chosen, rejected)):
        raise BadRowError(f"{names} part at message {length + 1}, which is no answer")
    return chosen[:length], chosen[length:], rejected[length:]


def _parted_texts(chosen: str, rejected: str, names: str) -> _Parted:
    if all(_TRANSCRIPT.match(text) for text in (chosen, rejected)):
        return _parted(_transcript(chosen), _transcript(rejected), names)
    if chosen == rejected:
        raise BadRowError(f"{names} are the same")
    # The answers may begin alike too: the prompt ends with the last line that is common, or else with the last word.
    pairs = enumerate(zip(chosen, rejected, strict=False))
    differ = next((index for index, (one, other) in pairs if one != other), min(len(chosen), len(rejected)))
    common = chosen[:differ]
    cut = common.rfind("\n") + 1 or common.rfind(" ") + 1
    if not common[:cut].strip():
        raise BadRowError(f"{names} have no beginning in common that could be the prompt; name its column")
    sides = chosen[cut:], rejected[cut:]
    if not all(side.strip() for side in sides):
        raise BadRowError(f"one of {names} is only the beginning of the other")
    wanted, refused = ({"role": "assistant", "content": side} for side in sides)
    return ({"role": "user", "content": common[:cut]},), (wanted,), (refused,)


def _transcript(text: str) -> tuple[Turn, ...]:
    pieces = _TRANSCRIPT.split(text)[1:]
    speakers = {"Human": "user", "Assistant": "assistant"}
    turns = [{"role": speakers[who], "content": said.strip()} for who, said in zip(*[iter(pieces)] * 2, strict=True)]
    return read_turns(turns, "messages")


def _tagged(values: _Values) -> Example:
    lists = []
    for role in ("tokens", "tags"):
        value, column = values.get(role), values.column(role)
        if not isinstance(value, (list, tuple)) or not value:
            kind = "empty" if isinstance(value, (list, tuple)) else type_of(value)
            raise BadRowError(f"{column!r} is {kind}, not a list of {role}")
        wrong = next((each for each in value if not isinstance(each, str)), "")
        if wrong != "":
            hint = "; give the tags by name" if isinstance(wrong, int) and role == "tags" else ""
            raise BadRowError(f"{column!r} holds {type_of(wrong)}, not text{hint}")
        lists.append(list(value))
    tokens, tags = lists
    question = {"role": "user", "content": _text(" ".join(tokens), values.column("tokens"))}
    prompt = (*values.system(()), question)
    answer = {"role": "assistant", "content": tag_text(tokens, tags)}
    return Example((*prompt, answer), len(prompt), tokens=tuple(tokens), tags=tuple(tags))


_BUILDERS: dict[str, Callable[[_Values], Example]] = {
    "messages": _messages,
    "text": _plain,
    "feedback": _feedback,
    "preference": _preference,
    "prompt_only": _prompt_only,
    "tokens_tags": _tagged,
}
"""Format to what makes its examples; all others have a prompt and a completion."""
