"""What a record says of how a model was made and what that cost, in words and figures for a reader."""

import math
from collections.abc import Mapping
from typing import Any

from hf_peft_recipes.card.publication import Publication
from hf_peft_recipes.spec.objectives import OBJECTIVES
from hf_peft_recipes.spec.quantized import EIGHT, FLOAT8, FOUR, kind_of_base

GIB, MIB = 2**30, 2**20
Row = tuple[str, ...]

_ROWS_OF = {
    "messages": "conversations",
    "preference": "preference pairs",
    "feedback": "rows of binary feedback",
    "alpaca": "instructions with answers",
    "question_answer": "questions with answers",
    "source_target": "pairs of source and target",
    "tokens_tags": "tagged sentences",
    "text_label": "labelled texts",
    "text": "texts",
    "prompt_only": "prompts",
}


def summary(record: Mapping[str, Any], recipe: Mapping[str, Any], publication: Publication) -> str:
    """Return one sentence: method, base, objective, data."""
    base = _link(publication.base_model)
    method = method_name(recipe)
    what = {
        "adapter": f"{_article(method)} {method} adapter for {base}",
        "finetune": f"{base}, all of its weights",
        "merge": f"{base} with {_article(method).lower()} {method} adapter merged into its weights",
        "quantized": f"{base}, fine-tuned with {_article(method).lower()} {method} adapter, merged and quantised",
    }[publication.relation]
    objective = record["objective"]
    how = OBJECTIVES[objective].title if objective in OBJECTIVES else f"the objective `{objective}`"
    data = record["data"]
    kept = data["ledger"]["rows"]["kept"]
    rows = _ROWS_OF.get(data["format"], "pairs of prompt and completion")
    part = "part of " if (epochs(record) or 1) < 1 else ""
    verb = " trained" if publication.relation == "finetune" else ", trained"
    return f"{what}{verb} by {how} on {part}{kept:,} {rows} from {data_source(record, publication)}."


def epochs(record: Mapping[str, Any]) -> float | None:
    """Return how often the rows were gone through, None when no loss was logged."""
    return max((point["epoch"] for point in record["loss_curve"] if "epoch" in point), default=None)


def method_name(recipe: Mapping[str, Any]) -> str:
    """Return what the method is called: LoRA, QLoRA, DoRA …, or full fine-tuning."""
    adapter = recipe.get("adapter")
    if not adapter:
        return "full fine-tuning"
    kind = str(adapter["peft_type"]).upper()
    name = {"LORA": "DoRA" if adapter.get("use_dora") else "LoRA"}.get(kind, kind)
    return f"Q{name}" if kind_of_base(recipe.get("quantization")) in (FOUR, EIGHT) else name


def data_source(record: Mapping[str, Any], publication: Publication) -> str:
    """Return where the rows came from; what is on no Hub stays without a name."""
    named = [_link(name, "datasets/") for name in publication.datasets]
    if is_demo(record):
        named.append("the demo data that ship with hf-peft-recipes")
    if has_local_data(record, publication):
        named.append("local data that are not published")
    return " and ".join(filter(None, [", ".join(named[:-1]), named[-1]]))


def has_local_data(record: Mapping[str, Any], publication: Publication) -> bool:
    """Return whether some of the rows came from no data set of the Hub."""
    return not is_demo(record) and len(_sources(record)) > len(publication.datasets)


def is_demo(record: Mapping[str, Any]) -> bool:
    """Return whether the run trained on the data that ship with this package."""
    return [source["dataset"] for source in _sources(record)] == ["embedded demo"]


def data_sentence(record: Mapping[str, Any], publication: Publication) -> str:
    """Return where the rows came from, in which format, and how they can be told."""
    data = record["data"]
    source = data_source(record, publication)
    mended = data.get("mended") or {}
    said = [f"From {source}, in the format `{data['format']}`, `{data['fingerprint']}`."]
    if mended.get("as_served"):
        said.append("Only the last answer of each conversation was learned from, behind what is served before it.")
    if mended.get("closes"):
        said.append("The end token was added behind every answer, where the chat template puts none.")
    return " ".join(said)


def recipe_rows(record: Mapping[str, Any], recipe: Mapping[str, Any], publication: Publication) -> list[Row]:
    """Return `(what, value)` for the values that decide what a run does."""
    adapter, training = recipe.get("adapter") or {}, recipe.get("training") or {}
    data = recipe.get("data") or {}
    quantization = recipe.get("quantization") or {}
    processes = record["hardware"]["processes"]
    per_step = training.get("per_device_train_batch_size", 8) * training.get("gradient_accumulation_steps", 1)
    revision = f" @ `{publication.base_revision[:12]}`" if publication.base_revision else ""
    rows = {
        "recipe": f"`{record['recipe']}`: {recipe.get('summary', method_name(recipe)).rstrip('.')}",
        "base": f"{_link(publication.base_model)}{revision}",
        "base weights": ", ".join(filter(None, [(recipe.get("model") or {}).get("dtype"), _bits(quantization)])),
        "adapter": _adapter(adapter),
        "target modules": _named(adapter.get("target_modules")),
        "learning rate": f"{training['learning_rate']:g}" if training.get("learning_rate") else "",
        "schedule": _schedule(training),
        "length": _length(record),
        "batch": _batch(per_step * processes, record["data"]["ledger"].get("max_length"), training.get("packing")),
        "optimizer": str(training.get("optim") or ""),
        "mixed precision": next((kind for kind in ("bf16", "fp16") if training.get(kind)), "none"),
        "loss on": _learned_on(record, str(data.get("loss_on") or "")),
        "rewards": ", ".join(f"`{name}` × {weight:g}" for name, weight in reward_weights(record).items()),
        "seed": str(record["seeds"]["training"]),
    }
    return [(name, value) for name, value in rows.items() if value]


def ledger_rows(record: Mapping[str, Any]) -> list[Row]:
    """Return `(what, number)` for every training row and token."""
    ledger = record["data"]["ledger"]
    rows, tokens = ledger["rows"], ledger["tokens"]
    share = tokens["supervised"] / tokens["total"] if tokens["total"] else 0
    made: list[Row] = [
        ("rows kept", f"{rows['kept']:,}"),
        ("of these, going on in a further row because they are longer than one", f"{rows['split']:,}"),
        ("of these, cut at the maximum length", f"{rows['truncated']:,}"),
        ("rows dropped", f"{rows['dropped']:,}"),
        *((f"dropped: {reason}", f"{number:,}") for reason, number in ledger["reasons"].items()),
        ("tokens", f"{tokens['total']:,}"),
        ("of these, with loss", f"{tokens['supervised']:,} ({share:.1%})"),
    ]
    if lengths := ledger.get("lengths"):
        made.append(("tokens a row: median, 95th percentile, longest", _quantiles(lengths)))
    if (same := ledger.get("held_out_duplicates")) is not None:
        made += [
            ("held-out rows found among the training rows, word for word", f"{same['exact']:,}"),
            ("held-out rows found there but for case, blanks and punctuation", f"{same['normalized']:,}"),
        ]
    held, metrics = record["data"]["rows"], record["metrics"]
    same_split = " (of the split that is scored)" if metrics.get("split") == "validation" else ""
    made += [
        ("rows set aside to watch the loss while training", f"{held['validation']:,}{same_split}"),
        ("rows set aside to score before and after", f"{held['held_out']:,}"),
    ]
    return made


def cost_rows(record: Mapping[str, Any]) -> list[Row]:
    """Return `(what, value)` for what the run cost."""
    hardware, measured, parameters = record["hardware"], record["measured"], record["parameters"]
    device = hardware["device"]
    number = f"{device['count']} × " if device["count"] > 1 else ""
    memory = "GPU memory" if device["kind"] == "cuda" else "host memory"
    trained, total = parameters["trainable"], parameters["total"]
    rows = {
        "hardware": f"{number}{device['name']}, {device['memory_bytes'] / GIB:.0f} GiB; {hardware['system']} "
        f"{hardware['machine']}, {_plural(hardware['processes'], 'process', 'processes')}",
        f"peak {memory}": _bytes(measured.get("peak_memory_bytes")),
        "speed": _measured(measured.get("tokens_per_second"), "{:,.0f} tokens/s, padding not counted"),
        "an optimizer step": _measured(measured.get("step_seconds"), "{:.3g} s (median)"),
        "steps": _measured(measured.get("steps"), "{:,}"),
        "training": _seconds(measured.get("train_seconds")),
        "the whole run, with both evaluations": _seconds(measured.get("total_seconds")),
        "parameters trained": f"{trained:,} of {total:,} ({trained / total:.2%})",
        "faster paths taken": ", ".join(path.replace("_", " ") for path in record.get("speed") or []),
        "computed again on the way back": "" if record.get("recompute", "off") == "off" else record["recompute"],
    }
    return [(name, value) for name, value in rows.items() if value]


def figure_rows(figures: Mapping[str, Any], prefix: str = "") -> list[Row]:
    """Return `(name, value)` for a mapping of figures, nested ones with their names joined."""
    rows: list[Row] = []
    for key, value in figures.items():
        name = f"{prefix}{str(key).replace('_', ' ')}"
        if isinstance(value, Mapping):
            rows += figure_rows(value, f"{name}: ")
        else:
            rows.append((name, f"{value:,.4g}" if isinstance(value, float) else str(value)))
    return rows


def _adapter(adapter: Mapping[str, Any]) -> str:
    if not adapter:
        return "none: all weights are trained"
    shown = {"r": "r", "lora_alpha": "alpha", "lora_dropout": "dropout"}
    values = [f"{label} {adapter[key]:g}" for key, label in shown.items() if adapter.get(key) is not None]
    return ", ".join([method_name({"adapter": adapter}), *values])


def _bits(quantization: Mapping[str, Any]) -> str:
    if quantization.get("load_in_4bit"):
        doubly = ", double quantisation" if quantization.get("bnb_4bit_use_double_quant") else ""
        return f"4 bits ({quantization.get('bnb_4bit_quant_type', 'fp4')}{doubly})"
    if kind_of_base(quantization) == FLOAT8:
        return "rounded to 8-bit floats (e4m3, a factor a row)"
    return "8 bits" if quantization.get("load_in_8bit") else ""


def _schedule(training: Mapping[str, Any]) -> str:
    warmup = training.get("warmup_steps") or 0
    warmed = f"warm-up over {warmup:.3g} steps" if warmup >= 1 else f"warm-up over {warmup:.0%} of the steps"
    return ", ".join(filter(None, [str(training.get("lr_scheduler_type") or ""), warmed if warmup else ""]))


def _length(record: Mapping[str, Any]) -> str:
    steps, passed = record["measured"].get("steps"), epochs(record)
    seen = f"{passed:.3g} {'epoch' if passed <= 1 else 'epochs'}" if passed else ""
    return ", ".join(filter(None, [f"{steps:,} steps" if steps else "", seen]))


def _batch(rows: int, max_length: int | None, packed: bool | None) -> str:
    limit = f"{max_length:,} tokens" if max_length else "any length"
    return f"{rows} packed rows of {limit} a step" if packed else f"{rows} rows of up to {limit} a step"


def reward_weights(record: Mapping[str, Any]) -> Mapping[str, float]:
    """Return the reward functions that a run learned from, with their weights; none for other objectives."""
    weights: Mapping[str, float] = record.get("rewards", {}).get("weights", {})
    return weights


def _learned_on(record: Mapping[str, Any], loss_on: str) -> str:
    return "answers of its own" if reward_weights(record) else _loss_on(loss_on, record["data"]["format"])


def _loss_on(loss_on: str, data_format: str) -> str:
    by_itself = {"messages": "every assistant turn", "text": "all tokens"}.get(data_format, "the answers")
    return by_itself if loss_on == "auto" else loss_on.replace("_", " ")


def _named(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value or "")


def _quantiles(lengths: Mapping[str, Any]) -> str:
    return ", ".join(f"{lengths[key]:,}" for key in ("median", "p95", "max"))


def _bytes(number: float | None) -> str:
    if not number:
        return ""
    return f"{number / GIB:.2f} GiB" if number >= GIB else f"{number / MIB:.0f} MiB"


def _seconds(seconds: float | None) -> str:
    if not seconds:
        return ""
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = math.floor(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {seconds % 60:.0f} s"


def _measured(value: float | None, form: str) -> str:
    return form.format(value) if value else ""


def _plural(number: float, one: str, many: str = "") -> str:
    return f"{number:g} {one if number == 1 else many or one + 's'}"


def _article(word: str) -> str:
    # By sound: "an LHA", "an IA3", but "a LoRA".
    return "An" if word[:1] in "AEIO" or (word.isupper() and word[:1] in "FHLMNRSX") else "A"


def _link(name: str, kind: str = "") -> str:
    return f"[{name}](https://huggingface.co/{kind}{name})"


def _sources(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return record["data"]["ledger"].get("sources") or [{"dataset": record["data"]["dataset"]}]
