"""What a card warns of: what follows from this run's record and its base, and nothing that could stand on any card."""

from collections.abc import Mapping
from typing import Any

from hf_peft_recipes.card.facts import data_source, epochs, reward_weights
from hf_peft_recipes.card.publication import Publication

FEW_ROWS = 100
"""With fewer, the interval of a share of one half is wider than 20 points (1.96 · 0.5 / √100 = 0.098 to each side)."""


def limits(record: Mapping[str, Any], publication: Publication) -> list[str]:
    """Return one sentence or two a limit."""
    return [
        _evaluation(record, publication),
        "It was not trained or tested for safety, and not tested for what it may have forgotten of its base.",
        *_partly_seen(record),
        *_answers(record),
        _license(publication),
        *_seed(record),
    ]


def _evaluation(record: Mapping[str, Any], publication: Publication) -> str:
    metrics = record["metrics"]
    if not metrics["after"]:
        return "It has not been evaluated."
    rows = metrics["rows"]
    text = (
        f"It was evaluated on {rows:,} rows of `{metrics['split']}` only, which come from where its training rows come "
        f"from ({data_source(record, publication)}): on other data it may do worse."
    )
    return text + (" That is few: the intervals are wide." if rows < FEW_ROWS else "")


def _partly_seen(record: Mapping[str, Any]) -> list[str]:
    passed = epochs(record)
    return [f"Training ended after about {passed:.0%} of its rows."] if passed and passed < 1 else []


def _answers(record: Mapping[str, Any]) -> list[str]:
    ledger = record["data"]["ledger"]
    said = []
    if weights := reward_weights(record):
        said.append(
            f"It learned from answers of its own, by what its rewards ({', '.join(weights)}) say of them: what they do "
            "not see may have got worse."
        )
    elif record["data"]["format"] != "text" and (lengths := ledger.get("supervised_lengths")):
        said.append(
            f"It learned from answers of up to {lengths['max']:,} tokens (median {lengths['median']:,}) in rows of up "
            f"to {ledger['lengths']['max']:,}: longer ones are outside of what it has seen."
        )
    if truncated := ledger["rows"]["truncated"]:
        said.append(f"{truncated:,} of its training rows were cut, so some answers that it learned from do not end.")
    same = ledger.get("held_out_duplicates") or {}
    if leaked := sum(same.values()):
        said.append(f"{leaked:,} held-out rows stand among its training rows too: its score is better than it is.")
    return said


def _license(publication: Publication) -> str:
    base = f"[{publication.base_model}](https://huggingface.co/{publication.base_model})"
    terms = " Its terms have to be accepted there before it can be downloaded." if publication.gated else ""
    if publication.license is None:
        return (
            f"The base, {base}, states no licence, so this card states none: ask its makers before you use it.{terms}"
        )
    return (
        f"The licence (`{publication.license}`), the biases and the limits of its base, {base}, hold here too.{terms}"
    )


def _seed(record: Mapping[str, Any]) -> list[str]:
    seed = record["seeds"]["training"]
    return [f"One run with one seed ({seed}): the intervals say nothing of how other seeds would come out."]
