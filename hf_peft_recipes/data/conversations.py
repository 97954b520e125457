"""Conversations: turns as OpenAI or ShareGPT write them, brought to one form, and what makes one unusable."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from hf_peft_recipes.data.columns import type_of
from hf_peft_recipes.data.records import BadRowError

ROLES_OF_TURNS = ("system", "user", "assistant", "tool")

_SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
}

_TEXT_KEYS = ("name", "tool_call_id", "reasoning_content")
"""Keys of a turn beside role, content and tool_calls that chat templates read."""

Turn = Mapping[str, Any]


def read_turns(value: Any, column: str) -> tuple[Turn, ...]:
    """Return the turns of a conversation with their role, content, and what else chat templates read.

    Args:
        value: a list of turns, each with role and content, or with from and value.
        column: where it stands.

    Raises:
        BadRowError: no list, an unknown role, content that is no text.
    """
    if not isinstance(value, (list, tuple)) or not value:
        kind = "null" if value is None else "empty" if isinstance(value, (list, tuple)) else "no list of turns"
        raise BadRowError(f"{column!r} is {kind}")
    of = "" if column in ("messages", "conversations", "conversation") else f" of {column!r}"
    return tuple(
        turn if _is_plain(turn) else _turn(turn, f"message {number}{of}") for number, turn in enumerate(value, 1)
    )


def check_order(turns: Sequence[Turn], where: str = "") -> None:
    """Raise a BadRowError unless the turns could have been said in this order, with an answer among them.

    Args:
        turns: as `read_turns` returns them.
        where: a beginning for messages, where the row has several conversations.
    """
    before: Turn | None = None
    for number, turn in enumerate(turns, 1):
        role, last = turn["role"], before["role"] if before else None
        if role == "system" and number > 1:
            raise BadRowError(f"{where}message {number} is a system turn that is not the first")
        if role == last and role in ("user", "assistant"):
            raise BadRowError(f"{where}messages {number - 1} and {number} are both {role} turns")
        if role == "assistant" and last in (None, "system"):
            raise BadRowError(f"{where}the conversation begins with an assistant turn")
        if role == "tool" and last != "tool" and not (before and before.get("tool_calls")):
            raise BadRowError(f"{where}message {number} is a tool turn, but no tool was called before it")
        before = turn
    if not any(turn["role"] == "assistant" for turn in turns):
        raise BadRowError(f"{where}no assistant turn to learn from")


def read_tools(value: Any, column: str) -> tuple[Mapping[str, Any], ...]:
    """Return the JSON schemas of the tools that a row offers; none where the value is null or empty.

    Raises:
        BadRowError: no list of schemas, nor JSON text of one.
    """
    if isinstance(value, str) and value.strip():
        value = _json(value, repr(column))
    elif value:
        value = _without_nulls(value)
    if not value or (isinstance(value, str) and not value.strip()):
        return ()
    if not isinstance(value, (list, tuple)):
        raise BadRowError(f"{column!r} is {type_of(value)}, not a list of tools")
    tools = []
    for number, tool in enumerate(value, 1):
        if not isinstance(tool, Mapping):
            raise BadRowError(f"tool {number} of {column!r} is {type_of(tool)}, not a mapping")
        tools.append(_function(tool, f"tool {number} of {column!r}"))
    return tuple(tools)


def unsupervised(value: Any, turns: Sequence[Turn]) -> int:
    """Return the index up to which the assistant turns carry the weight 0 (OpenAI's key for turns without loss).

    Raises:
        BadRowError: one with the weight 0 comes after one that is to be learned.
    """
    weights = [turn.get("weight") for turn in value]
    if not any(weight == 0 for weight in weights):
        return 0
    start = 0
    for index, (weight, turn) in enumerate(zip(weights, turns, strict=True)):
        if turn["role"] == "assistant" and weight == 0:
            if any(turns[i]["role"] == "assistant" for i in range(start, index)):
                raise BadRowError(f'message {index + 1} has "weight" 0 though an earlier answer is to be learned')
            start = index + 1
    if not any(turn["role"] == "assistant" for turn in turns[start:]):
        raise BadRowError('no assistant turn to learn from: each has "weight" 0')
    return start


def _is_plain(turn: Any) -> bool:
    """Return whether a turn is a good one with role and content only: most are, and they need no further look."""
    if type(turn) is not dict or len(turn) != 2 or turn.get("role") not in ROLES_OF_TURNS:
        return False
    content = turn.get("content")
    return isinstance(content, str) and bool(content) and not content.isspace()


def _turn(turn: Any, name: str) -> Turn:
    if not isinstance(turn, Mapping):
        raise BadRowError(f"{name} is {type_of(turn)}, not a mapping")
    if turn.get("role") is None and turn.get("from") is not None:
        return _sharegpt_turn(turn, name)
    role = turn.get("role")
    if role not in ROLES_OF_TURNS:
        raise BadRowError(f'"role" of {name} is {_shown(role)}; known: {", ".join(ROLES_OF_TURNS)}')
    calls = _calls(turn.get("tool_calls"), name)
    if calls and role != "assistant":
        raise BadRowError(f'{name} is a {role} turn with "tool_calls"; only the assistant calls tools')
    made = {"role": role, "content": _content(turn.get("content"), "content", name, role, calls)}
    for key in _TEXT_KEYS:
        value = turn.get(key)
        if value is not None and not isinstance(value, str):
            raise BadRowError(f'"{key}" of {name} is {type_of(value)}, not text')
        if value is not None:
            made[key] = value
    return {**made, "tool_calls": calls} if calls else made


def _sharegpt_turn(turn: Mapping[str, Any], name: str) -> Turn:
    said_by, value = turn["from"], turn.get("value")
    if not isinstance(said_by, str) or said_by not in _SHAREGPT_ROLES:
        raise BadRowError(f'"from" of {name} is {_shown(said_by)}; known: {", ".join(_SHAREGPT_ROLES)}')
    if said_by == "function_call":
        calls = _calls(value, name, "value")
        if not calls:
            raise BadRowError(f'"value" of {name} is {"null" if value is None else "empty"}, not a call of a tool')
        return {"role": "assistant", "content": "", "tool_calls": calls}
    role = _SHAREGPT_ROLES[said_by]
    return {"role": role, "content": _content(value, "value", name, role, [])}


def _content(value: Any, key: str, name: str, role: str, calls: list[Any]) -> str:
    if isinstance(value, (list, tuple)):
        value = "".join(_part(part, number, key, name) for number, part in enumerate(value, 1))
    if value is None and calls:
        return ""
    if not isinstance(value, str):
        raise BadRowError(f'"{key}" of {name} is {type_of(value)}')
    # A tool may return nothing, and a system turn may be left empty on purpose.
    if not value.strip() and not calls and role in ("user", "assistant"):
        raise BadRowError(f'"{key}" of {name}, a turn of the {role}, is empty')
    return value


def _part(part: Any, number: int, key: str, name: str) -> str:
    if not isinstance(part, Mapping):
        raise BadRowError(f'part {number} of "{key}" of {name} is {type_of(part)}, not a mapping')
    kind = part.get("type")
    if kind != "text":
        thing = {"image_url": "an image", "image": "an image", "input_audio": "audio", "audio": "audio"}.get(
            str(kind), f"a part of type {_shown(kind)}"
        )
        raise BadRowError(f'"{key}" of {name} holds {thing}; this is a text set')
    if not isinstance(part.get("text"), str):
        raise BadRowError(f'the text of part {number} of "{key}" of {name} is {type_of(part.get("text"))}')
    return str(part["text"])


def _calls(value: Any, name: str, key: str = "tool_calls") -> list[dict[str, Any]]:
    if isinstance(value, str) and value.strip():
        value = _json(value, f'"{key}" of {name}')
    elif value:
        value = _without_nulls(value)
    if not value or (isinstance(value, str) and not value.strip()):
        return []
    value = [value] if isinstance(value, Mapping) else value
    if not isinstance(value, (list, tuple)):
        raise BadRowError(f'"{key}" of {name} is {type_of(value)}, not a list of calls')
    calls = []
    for number, call in enumerate(value, 1):
        where = f"call {number} of {name}"
        if not isinstance(call, Mapping):
            raise BadRowError(f"{where} is {type_of(call)}, not a mapping")
        made = _function(call, where)
        arguments = made["function"].get("arguments", {})
        if isinstance(arguments, str):
            arguments = _json(arguments, f'"arguments" of {where}') if arguments.strip() else {}
        if not isinstance(arguments, Mapping):
            raise BadRowError(f'"arguments" of {where} is {type_of(arguments)}, not a mapping')
        # Chat templates write the arguments out as JSON: text would be quoted a second time.
        made["function"] = {**made["function"], "arguments": arguments}
        calls.append(made)
    return calls


def _function(value: Mapping[str, Any], where: str) -> dict[str, Any]:
    made = dict(value) if "function" in value else {"type": "function", "function": dict(value)}
    function = made["function"]
    if not isinstance(function, Mapping):
        raise BadRowError(f'"function" of {where} is {type_of(function)}, not a mapping')
    called = function.get("name")
    if not isinstance(called, str) or not called.strip():
        raise BadRowError(f'"name" of {where} is {type_of(called) if called else "missing"}')
    return {"type": "function", **made}


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRowError(f"{where} is broken JSON: {getattr(error, 'msg', error)}") from None


def _without_nulls(value: Any) -> Any:
    """Return the value without the keys that are null.

    Arrow gives every mapping of a column the keys of all of them, with nulls: a model would be shown parameters that
    the tool does not have (TRL removes them likewise).
    """
    if isinstance(value, Mapping):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    return [_without_nulls(each) for each in value] if isinstance(value, (list, tuple)) else value


def _shown(value: Any) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
