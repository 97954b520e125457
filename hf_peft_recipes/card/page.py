"""The card, put together."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from hf_peft_recipes.card import facts, limits, rounds, scores
from hf_peft_recipes.card.guard import check_public
from hf_peft_recipes.card.metadata import card_data
from hf_peft_recipes.card.publication import Publication
from hf_peft_recipes.card.snippets import snippets
from hf_peft_recipes.spec import strict_yaml

TEMPLATE = Path(__file__).parent / "card.md.jinja"


def make_card(record: Mapping[str, Any], recipe_yaml: str, publication: Publication) -> str:
    """Return the model card of a run, Markdown with its metadata in front.

    Args:
        record: the published copy of `result.json`, with `certificate` and `merge` where there are such.
        recipe_yaml: the text of the published `recipe.yaml`.
        publication: where the run is published, and what it is made from.

    Raises:
        ValueError: the card would hold a local path or what looks like an access token.
        UserError: the recipe is no recipe.
    """
    recipe, _ = strict_yaml.load(recipe_yaml, "recipe.yaml")
    metrics = record["metrics"] if record["metrics"]["after"] else {}
    certificate, merge, feedback = record.get("certificate"), record.get("merge"), record.get("feedback")
    local = facts.has_local_data(record, publication)
    card = ModelCard.from_template(
        card_data(record, recipe, publication),
        template_path=str(TEMPLATE),
        title=publication.name,
        summary=facts.summary(record, recipe, publication),
        warning=_warning(record),
        metrics=metrics,
        metric_rows=scores.metric_rows(metrics) if metrics else [],
        definitions=scores.definitions(record) if metrics else [],
        class_rows=scores.class_rows(metrics),
        confusion_rows=scores.confusion_rows(metrics),
        verdict=scores.verdict(metrics) if metrics else "",
        certainty=scores.certainty(metrics) if metrics else "",
        curve=scores.curve(record),
        feedback_sentence=rounds.sentence(feedback) if feedback else "",
        feedback_headings=list(rounds.HEADINGS),
        feedback_rows=rounds.rows(feedback) if feedback else [],
        comparison_rows=rounds.comparison_rows(feedback) if feedback else [],
        merge=merge,
        merge_rows=facts.figure_rows(merge["figures"]) if merge else [],
        gated=publication.gated,
        private=publication.private,
        snippets=snippets(record, recipe, publication),
        prompt_note=_prompt_note(record),
        recipe_rows=facts.recipe_rows(record, recipe, publication),
        leaked=sum((record["data"]["ledger"].get("held_out_duplicates") or {}).values()),
        repeat=f"hf-peft-recipes train hub:{publication.repo_id}@main"
        + (" --dataset your_data.jsonl" if local else "")
        + " --output_dir repeated",
        local_data=local,
        recipe_yaml=recipe_yaml.strip("\n"),
        fence=_fence(recipe_yaml),
        data_sentence=facts.data_sentence(record, publication),
        ledger_rows=facts.ledger_rows(record),
        data_checks=_check_rows(record["data"].get("checks") or []),
        cost_rows=facts.cost_rows(record),
        certificate=certificate,
        certificate_rows=_check_rows(certificate["checks"]) if certificate else [],
        certificate_versions=_listed(certificate.get("versions") or {}) if certificate else "",
        proof=_proof(record),
        limits=limits.limits(record, publication),
        own_version=_own_version(record),
        version_list=_listed(record["versions"]),
    )
    text = str(card).rstrip("\n") + "\n"
    check_public(text)
    return text


def _warning(record: Mapping[str, Any]) -> str:
    certificate = record.get("certificate") or {}
    failed = [check["name"] for check in certificate.get("checks", []) if not check["ok"]]
    if failed or certificate.get("status") == "failed":
        return f"The certificate of this run failed{': ' + '; '.join(failed) if failed else ''}. See below."
    if record["status"] != "done":
        return f"This run did not end well: its record says `{record['status']}`."
    return ""


def _check_rows(checks: list[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    return [(check["name"], "holds" if check["ok"] else "**fails**", check["detail"]) for check in checks]


def _proof(record: Mapping[str, Any]) -> str:
    proof = record.get("proof")
    if not proof:
        return ""
    frozen = proof["frozen_tensors_checked"]
    return (
        f"While it trained: {proof['proved_tensors']} of {proof['trainable_tensors']} trainable tensors had a gradient "
        f"and moved" + (f"; the {frozen} frozen tensors that were looked at did not." if frozen else ".")
    )


def _prompt_note(record: Mapping[str, Any]) -> str:
    data = record["data"]
    if data["format"] == "text":
        return "It was trained on plain texts: it goes on with what it is given, and no chat template is used."
    if data.get("chat_template", True):
        return "Prompts were written by the chat template of this repository's tokenizer, in training as here."
    separator = {"": "nothing", "\n": "a line end"}.get(data["separator"], f"`{data['separator']!r}`")
    return f"There is no chat template: in training, {separator} stood between prompt and answer, as here."


def _own_version(record: Mapping[str, Any]) -> str:
    version = str(record["versions"].get("hf-peft-recipes", ""))
    return version if version[:1].isdigit() else ""


def _fence(text: str) -> str:
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    return "`" * max(3, longest + 1)


def _listed(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
