"""The metadata at the head of a card, as the Hub reads them."""

import re
from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from hf_peft_recipes.card.facts import has_local_data, is_demo
from hf_peft_recipes.card.publication import Publication
from hf_peft_recipes.spec.objectives import OBJECTIVES, PIPELINES

# https://huggingface.co/docs/hub/repositories-licenses, November 2026.
_KNOWN_LICENSES = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0
lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl
openmdw-1.0 openmdw-1.1 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 grok2-community gemma unknown
"""
LICENSES = frozenset(_KNOWN_LICENSES.split())
"""Values of `license` that the Hub knows, but for `other`, which wants a name beside it."""

_METRIC_TYPES = {"macro_f1": "f1", "macro_precision": "precision", "macro_recall": "recall"}
"""Metric to its id at https://hf.co/metrics, where that is another."""


def card_data(record: Mapping[str, Any], recipe: Mapping[str, Any], publication: Publication) -> ModelCardData:
    """Return the metadata.

    Args:
        record: the published copy of `result.json`.
        recipe: what `recipe.yaml` holds.
        publication: where the run is published.
    """
    peft_type = (recipe.get("adapter") or {}).get("peft_type")
    tags = ["hf-peft-recipes", *str(record["recipe"]).split("+"), *([str(peft_type).lower()] if peft_type else [])]
    tags += ["trl", record["objective"]]
    return ModelCardData(
        base_model=publication.base_model,
        base_model_relation=publication.relation,
        library_name="peft" if publication.has_adapter else "transformers",
        pipeline_tag=_pipeline(record),
        tags=list(dict.fromkeys(tags)),
        datasets=list(publication.datasets) or None,
        language=list(publication.language) or None,
        model_name=publication.name,
        eval_results=_eval_results(record, publication) or None,
        **_license(publication),
    )


def _pipeline(record: Mapping[str, Any]) -> str:
    """Return the Hub's name of what the model does."""
    return PIPELINES[OBJECTIVES[record["objective"]].head]


def _license(publication: Publication) -> dict[str, str]:
    stated = publication.license
    if stated is None:
        return {}
    if stated in LICENSES:
        return {"license": stated}
    name = publication.base_model.rsplit("/", 1)[-1] if stated == "other" else stated
    return {
        "license": "other",
        "license_name": re.sub(r"[^a-z0-9.-]+", "-", name.lower()).strip("-"),
        "license_link": f"https://huggingface.co/{publication.base_model}",
    }


def _eval_results(record: Mapping[str, Any], publication: Publication) -> list[EvalResult]:
    metrics = record["metrics"]
    intervals = metrics.get("intervals", {}).get("after", {})
    return [
        EvalResult(
            task_type=_pipeline(record),
            task_name=_pipeline(record).replace("-", " ").title(),
            **_dataset(record, publication),
            dataset_split=metrics.get("split"),
            metric_type=_METRIC_TYPES.get(name, name),
            metric_name=name.replace("_", " "),
            metric_value=_rounded(value),
            metric_args=_metric_args(name, metrics, intervals.get(name)),
        )
        for name, value in metrics["after"].items()
    ]


def _dataset(record: Mapping[str, Any], publication: Publication) -> dict[str, str]:
    # Both are required, and the Hub links the type to the data set of that id.
    if len(publication.datasets) == 1 and not has_local_data(record, publication):
        return {"dataset_type": publication.datasets[0], "dataset_name": publication.datasets[0]}
    if publication.datasets:
        return {"dataset_type": "mixed", "dataset_name": " + ".join(publication.datasets)}
    demo = is_demo(record)
    return {"dataset_type": "demo" if demo else "local", "dataset_name": "demo data" if demo else "local data"}


def _metric_args(name: str, metrics: Mapping[str, Any], interval: Any) -> dict[str, Any] | None:
    """Return how the value was made, with its interval: the one place of the format that has room for it."""
    args: dict[str, Any] = {"average": "macro"} if name.startswith("macro_") else {}
    if name in metrics.get("before", {}):
        args["before_training"] = _rounded(metrics["before"][name])
    if interval:
        args |= {"confidence": metrics["confidence"], "interval": [_rounded(bound) for bound in interval]}
    if metrics.get("rows"):
        args["rows"] = metrics["rows"]
    return args or None


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
