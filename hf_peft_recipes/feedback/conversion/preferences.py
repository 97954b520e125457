"""Preferences: two answers, and which of them is better."""

from collections.abc import Iterator, Sequence

from hf_peft_recipes.data.examples import Format
from hf_peft_recipes.data.records import BadRowError
from hf_peft_recipes.feedback.conversion.logs import LogFormat, LogRow, Said, turns_of
from hf_peft_recipes.feedback.conversion.roles import BESIDE, CONVERSATION, Role

_FIRST = {"a", "model_a", "response_a", "answer_a", "completion_a", "left", "first"}
_SECOND = {"b", "model_b", "response_b", "answer_b", "completion_b", "right", "second"}
_TIE = {"tie", "both", "equal", "same", "draw", "none", "null", ""}
_BOTH_BAD = {"tie_(bothbad)", "tie(bothbad)", "bothbad", "both_bad", "neither"}
_ZERO, _ONE, _TWO = (
    tuple(f"{name}_{number}" for name in ("answer", "response", "completion", "output")) for number in range(3)
)
"""Answers that are numbered, from 0 or from 1: the second is never the one that the first could be too."""
_PAIR = frozenset({"chosen", "rejected"})


def read_preferences(rows: Sequence[LogRow], scale: str | None) -> Iterator[tuple[LogRow, list[Said] | BadRowError]]:
    """Yield what each row says: of the worse answer, that the better one is the answer in its place.

    Where neither is better nothing is said of them; where both are bad, both are rejected.
    """
    words = {_word(row) for row in rows}
    # 0 and 1, or 1 and 2: a 1 alone does not tell.
    numbered = {"0": "a", "1": "b"} if "0" in words else {"1": "a", "2": "b"} if "2" in words else {}
    for row in rows:
        try:
            yield row, _said(row, numbered)
        except BadRowError as error:
            yield row, error


def _said(row: LogRow, numbered: dict[str, str]) -> list[Said]:
    better, worse, winner = "chosen", "rejected", "a"
    if not row.columns.keys() >= _PAIR:
        better, worse, winner = "answer_a", "answer_b", numbered.get(_word(row), _word(row))
    if row.get(better) == row.get(worse) and row.get(better) is not None:
        return [Said(nothing="rows of two answers that are the same")]
    if winner in _TIE:
        return [Said(nothing="rows where neither answer is better")]
    if winner in _SECOND:
        better, worse = worse, better
    elif winner not in _FIRST | _BOTH_BAD:
        said = str(row.get("winner"))[:40]
        raise BadRowError(f"{row.columns['winner']!r} is {said!r}; a, b, tie or both_bad is wanted")
    beside = {role: row.columns[role] for role in ("prompt", "system") if role in row.columns}
    columns = {"chosen": row.columns[better], "rejected": row.columns[worse], **beside}
    example = Format("preference", columns).example(row.values)
    start = example.supervised_from
    chosen, rejected = example.messages[start:], example.rejected
    if any(len(side) != 1 or side[0]["role"] != "assistant" for side in (chosen, rejected)):
        return [Said(nothing="rows whose conversations part before their last answer")]
    prompt, (wanted,), (refused,) = turns_of(example.messages[:start]), chosen, rejected
    models = {role: row.text(f"model_{role[-1]}") for role in (better, worse) if role.startswith("answer")}
    if winner in _BOTH_BAD:
        return [
            Said(prompt, turn["content"], {"label": False}, models.get(role))
            for role, turn in ((better, wanted), (worse, refused))
        ]
    return [Said(prompt, refused["content"], {"correction": wanted["content"]}, models.get(worse))]


def _word(row: LogRow) -> str:
    value = row.get("winner")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str("" if value is None else value).strip().lower().replace(" ", "_").replace("-", "_")


PREFERENCES = LogFormat(
    "preferences",
    (
        *(role for role in CONVERSATION if role.name in ("prompt", "system")),
        Role("chosen", ("chosen", "chosen_response", "preferred", "better", "winner_response")),
        Role("rejected", ("rejected", "rejected_response", "dispreferred", "worse", "loser_response")),
        Role("answer_a", ("answer_a", "response_a", "completion_a", "conversation_a", "output_a"), (*_ZERO, *_ONE)),
        Role("answer_b", ("answer_b", "response_b", "completion_b", "conversation_b", "output_b"), (*_TWO, *_ONE)),
        Role("winner", ("winner", "preference", "choice"), ("label", "better_response", "preferred_response")),
        Role("model_a", ("model_a",)),
        Role("model_b", ("model_b",)),
        *BESIDE,
    ),
    (_PAIR, frozenset({"answer_a", "answer_b", "winner"})),
    read_preferences,
)  # fmt: skip
