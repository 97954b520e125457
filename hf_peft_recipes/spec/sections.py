"""Which keys each section takes: the house's own, and the few upstream ones that the house sets itself."""

from collections.abc import Mapping
from typing import Any

from hf_peft_recipes.errors import UserError, did_you_mean
from hf_peft_recipes.redaction import redact
from hf_peft_recipes.spec import upstream
from hf_peft_recipes.spec.entries import Entries, Path
from hf_peft_recipes.spec.quantized import FLOAT8_TYPE, method_of
from hf_peft_recipes.spec.recompute import read_recompute
from hf_peft_recipes.spec.upstream import Field

HOUSE_FIELDS: dict[str, dict[str, Field]] = {
    "data": {
        "dataset": Field("str"),  # a file, a folder, or a Hub id with an optional @revision; or a list of them
        "weights": Field("list"),  # how often each of several data sets is seen in an epoch
        "split": Field("str"),  # the split to train on
        "validation_size": Field("float"),  # share of the training rows held out when there is no held-out split
        "validation_rows": Field("int"),  # and never more rows than this; null for no limit
        "columns": Field("dict"),  # role -> column, see ROLES
        "format": Field("dict"),  # role -> a text with {column} in it, in place of a column
        "separator": Field("str"),  # between prompt and completion where the tokenizer has no chat template
        "loss_on": Field("str"),  # auto | assistant | last_turn | completion | all
        "overlong": Field("str"),  # split | truncate | drop | error
        "on_bad_row": Field("str"),  # error | drop
        "min_supervised_tokens": Field("int"),  # a row with fewer is dropped
        "max_dropped": Field("float"),  # share of the rows; more stops the run
        "max_truncated": Field("float"),  # share of the rows; more stops the run
        "max_leaked": Field("float"),  # share of the held-out rows that stand among the training rows too
        "streaming": Field("bool"),  # tokenise while training runs
        "fix": Field("bool"),  # mend what the stop test finds
    },
    "evaluation": {
        "split": Field("str"),  # the held-out split; null takes test, else validation: the split, or what was set aside
        "task": Field("str"),  # auto, or one of evaluation.TASKS
        "max_rows": Field("int"),  # held-out rows scored; null takes all, 0 none
        "max_new_tokens": Field("int"),  # null: as many as the longest reference has
        "batch_size": Field("int"),  # rows generated at a time
        "bootstrap_samples": Field("int"),
        "confidence": Field("float"),
        "early_stopping_patience": Field("int"),  # evaluations without a better one that end training; null for none
        "early_stopping_threshold": Field("float"),  # by how much better an evaluation must be to count
    },
    "rewards": {
        "functions": Field("list"),  # scorers by name, {scorer: regex, pattern: …}, module:function; see reward_weights
    },
    "feedback": {
        "rounds": Field("int"),  # null: the recipe learns from its data alone
        "prompts": Field("int"),  # rows that each round draws; null for all
        "samples": Field("int"),  # answers to each of them
        "sampling": Field("dict"),  # how they are drawn: fields of GenerationConfig
        "generated_tokens": Field("int"),  # of a round at the most, refinements counted in; null for no limit
        "engine": Field("str"),  # what draws them, see generation.ENGINES
        "engine_options": Field("dict"),
        "source": Field("str"),  # who gives feedback, see feedback.sources; module:function
        "options": Field("dict"),  # of the source
        "accept": Field("float"),  # the least score of an answer to learn from
        "refine": Field("str"),  # feedback | hint | null: what a new try at a wrong answer is given
        "refine_template": Field("str"),  # how that is asked for, with {prompt}, {completion}, {feedback}, {reference}
        "refinements": Field("int"),  # new tries at each wrong answer
        "refine_steps": Field("int"),  # tries at what is still wrong
        "select": Field("str"),  # source | likelihood: what says that a refinement is good
        "answers": Field("int"),  # to learn from, a row; pairs a row of preferences
        "likeliest": Field("float"),  # share of the answers to learn from, those least likely for the model left out
        "start": Field("str"),  # last | base: what each round trains on from
        "replay": Field("float"),  # share of the earlier rounds' rows that are learned from again
        "metric": Field("str"),  # of the held-out rows, by which a round is kept; null for the task's own
        "falls_at_most": Field("float"),  # by so much it may be worse than the best round before
        "regression": Field("str"),  # bundled, or a file of questions of which no more may be answered wrong; null
        "regression_falls_at_most": Field("float"),  # share of them
        "on_error": Field("str"),  # error | drop: what becomes of an answer that the source failed on
        "max_failed": Field("float"),  # share of the answers; more stops the run
        "compare": Field("bool"),  # spend the same on rejection sampling and on plain fine-tuning too
    },
}

_ADAPTER_FIELDS = {
    "peft_type": Field("str"),
    "adapter_name_or_path": Field("str"),  # the folder of an adapter to go on with
    "loraplus_lr_ratio": Field("float"),  # LoRA+: how many times A's rate B learns at; PEFT has it beside its configs
}

CHOICES: dict[Path, tuple[Any, ...]] = {
    ("speed",): ("auto", "off"),
    ("quantization", "quant_type"): (FLOAT8_TYPE,),
    ("certify",): ("auto", "off"),
    ("allow_code_execution",): (True, False),
    ("feedback", "engine"): ("transformers", "vllm", "server"),
    ("feedback", "refine"): ("feedback", "hint", None),
    ("feedback", "select"): ("source", "likelihood"),
    ("feedback", "start"): ("last", "base"),
    ("feedback", "on_error"): ("error", "drop"),
    ("data", "loss_on"): ("auto", "assistant", "last_turn", "completion", "all"),
    ("data", "overlong"): ("split", "truncate", "drop", "error"),
    ("data", "on_bad_row"): ("error", "drop"),
    ("evaluation", "task"): (
        "auto", "text", "classification", "exact_match", "numeric", "entities", "generation", "preference", "judged",
    ),
}  # fmt: skip

ROLES = (
    "messages", "text", "prompt", "completion", "system", "chosen", "rejected", "label", "tools", "input", "tokens",
    "tags",
)  # fmt: skip
"""What a column of the data can be: the keys of `data.columns` and `data.format`."""

_OUTPUT = "the run's folder is `--output_dir` of the command line or `train(output_dir=…)`"
_LOSS = "use data.loss_on (auto, assistant, last_turn, completion, all)"
_HUB = "use the command line's --push_to_hub and --hub_model_id, or `result.push_to_hub(…)`"
_TOKEN = "a token never stands in a recipe or a flag: set HF_TOKEN or run `hf auth login`"
_OURS = "the run sets it itself"
_WHOLE_ENDS = "embedding and head stay whole, as under bitsandbytes"

OWNED_FIELDS: dict[Path, str] = {
    ("training", "output_dir"): _OUTPUT,
    ("training", "logging_dir"): _OUTPUT,
    ("training", "resume_from_checkpoint"): "use `--resume`",
    ("training", "restore_callback_states_from_checkpoint"): "use `--resume`",
    ("training", "push_to_hub"): _HUB,
    ("training", "hub_model_id"): _HUB,
    ("training", "hub_strategy"): _HUB,
    ("training", "hub_always_push"): _HUB,
    ("training", "hub_private_repo"): _HUB,
    ("training", "hub_revision"): _HUB,
    ("training", "hub_token"): _TOKEN,
    ("training", "dataset_text_field"): "use data.columns.text",
    ("training", "dataset_kwargs"): _OURS,
    ("training", "completion_only_loss"): _LOSS,
    ("training", "assistant_only_loss"): _LOSS,
    ("training", "truncation_mode"): "use data.overlong (split, truncate, drop, error)",
    ("training", "chat_template_path"): "pass a tokenizer with the template that you want",
    ("training", "eos_token"): "pass a tokenizer with the token that you want",
    ("training", "pad_token"): "pass a tokenizer with the token that you want",
    ("training", "chat_template_kwargs"): "pass a tokenizer with the template that you want",
    ("training", "log_completions_hub_repo"): _HUB,
    ("training", "model_init_kwargs"): "use the section `model`",
    ("training", "trust_remote_code"): "use model.trust_remote_code, from a flag only",
    ("training", "remove_unused_columns"): _OURS,
    ("training", "disable_tqdm"): _OURS,
    ("training", "local_rank"): "the launcher sets it",
    ("training", "do_train"): "it has no effect here",
    ("training", "do_eval"): "it has no effect here",
    ("training", "do_predict"): "it has no effect here",
    ("adapter", "task_type"): "the objective sets it",
    ("adapter", "inference_mode"): _OURS,
    ("adapter", "base_model_name_or_path"): "use model.name_or_path",
    ("adapter", "revision"): "use model.revision",
    ("adapter", "auto_mapping"): _OURS,
    ("adapter", "peft_version"): _OURS,
    ("adapter", "total_step"): "the run knows how many steps it has",
    ("model", "pretrained_model_name_or_path"): "use model.name_or_path",
    ("quantization", "include_input_output_embeddings"): _WHOLE_ENDS,
    ("quantization", "untie_embedding_weights"): _WHOLE_ENDS,
    ("model", "quantization_config"): "use the section `quantization`",
    ("model", "token"): _TOKEN,
    ("model", "use_safetensors"): "only safetensors are loaded",
    ("model", "torch_dtype"): "use model.dtype",
    ("model", "weights_only"): "only safetensors are loaded",
}
"""Upstream fields that are the house's to set, each with what to use instead."""

FLAG_ALIASES: dict[str, Path] = {
    "model": ("model", "name_or_path"),
    "model_name_or_path": ("model", "name_or_path"),
    "dataset": ("data", "dataset"),
    "dataset_name": ("data", "dataset"),
    "split": ("data", "split"),
    "speed": ("speed",),
    "recompute": ("recompute",),
    "certify": ("certify",),
    "fix": ("data", "fix"),
    "rewards": ("rewards", "functions"),
    "allow_code_execution": ("allow_code_execution",),
}
"""Words of the command line that are no field's own name."""


def section_fields(entries: Entries) -> dict[str, Mapping[str, Field]]:
    """Return, for each section of a recipe, the keys that it takes, given its objective, PEFT type and who quantises.

    Raises:
        UserError: an unknown objective, peft_type or quant_method.
    """
    objective, peft_type = entries.value("objective"), entries.value("adapter", "peft_type")
    fields: dict[str, Mapping[str, Field]] = {
        "model": {"name_or_path": Field("str"), **upstream.model_fields()},
        "quantization": upstream.quantization_fields(method_of(entries.section("quantization"))),
        "adapter": {**_ADAPTER_FIELDS, **upstream.adapter_fields(peft_type)} if peft_type else {},
        "training": upstream.training_fields(objective),
        **HOUSE_FIELDS,
    }
    return {
        section: {name: field for name, field in keys.items() if (section, name) not in OWNED_FIELDS}
        for section, keys in fields.items()
    }


def renamed(path: Path, fields: Mapping[str, Mapping[str, Field]]) -> Path:
    """Return `path` under the name that the installed version of upstream uses for it."""
    if path[0] != "training" or len(path) < 2:
        return path
    by_new = {new: old for old, new in upstream.RENAMES.items()}
    new = upstream.RENAMES.get(path[1], path[1])
    known = fields["training"]
    name = new if new in known else by_new.get(new, path[1])
    return (path[0], name, *path[2:])


def check_path(path: Path, origin: str, fields: Mapping[str, Mapping[str, Field]]) -> None:
    """Raise a UserError, with the nearest right name, unless `path` is a key that a recipe of these fields may set."""
    if path in OWNED_FIELDS:
        raise UserError(f"{'.'.join(path)} (from {origin}) is not a recipe's to set: {OWNED_FIELDS[path]}")
    if len(path) == 1:
        return
    section, known = path[0], fields[path[0]]
    if path[1] not in known:
        elsewhere = [f"{other}.{path[1]}" for other, keys in fields.items() if path[1] in keys]
        hint = f"; did you mean {elsewhere[0]!r}?" if elsewhere else did_you_mean(path[1], known)
        raise UserError(f"unknown key {'.'.join(path)!r} (from {origin}){hint}")
    if path[:2] in (("data", "columns"), ("data", "format")) and len(path) > 2 and path[2] not in ROLES:
        raise UserError(
            f"unknown role {path[2]!r} in data.{path[1]} (from {origin})"
            f"{did_you_mean(path[2], ROLES)} (roles: {', '.join(ROLES)})"
        )
    if len(path) > 2 and section in HOUSE_FIELDS and known[path[1]].annotation != "dict":
        raise UserError(f"{section}.{path[1]} (from {origin}) is a single value, not a mapping")


def as_share(path: Path, value: object) -> object:
    """Return `1%` as 0.01 where the house's own field is a share; any other value as it is."""
    field = HOUSE_FIELDS.get(path[0], {}).get(path[1]) if len(path) == 2 else None
    if field is None or field.annotation != "float" or not isinstance(value, str) or not value.endswith("%"):
        return value
    try:
        return float(value.removesuffix("%")) / 100
    except ValueError:
        return value


def check_value(path: Path, value: object, origin: str, fields: Mapping[str, Mapping[str, Field]]) -> None:
    """Raise a UserError when `value` is of another type than its field, none of its choices, or holds a secret."""
    if isinstance(value, str) and redact(value) != value:
        raise UserError(f"{'.'.join(path)} (from {origin}) holds a secret, which would be written down: {_TOKEN}")
    if path in CHOICES and value not in CHOICES[path]:
        choices = [_word(choice) for choice in CHOICES[path]]
        raise UserError(
            f"{'.'.join(path)} = {value!r} (from {origin}): one of {', '.join(choices)} is wanted"
            f"{did_you_mean(str(value), choices)}"
        )
    if path == ("recompute",):
        try:
            read_recompute(value)
        except UserError as error:
            raise UserError(f"{error} (from {origin})") from None
    if len(path) != 2:
        return
    annotation = fields[path[0]][path[1]].annotation if path[1] in fields[path[0]] else ""
    plain = annotation.removeprefix("Optional[").removesuffix("]").replace("None | ", "").replace(" | None", "")
    kinds = {"int": ("a whole number", (int,)), "float": ("a number", (int, float)), "bool": ("true or false", (bool,))}
    if value is None or plain not in kinds:
        return
    wanted, types = kinds[plain]
    if not isinstance(value, types) or (plain != "bool" and isinstance(value, bool)):
        raise UserError(f"{'.'.join(path)} = {value!r} (from {origin}): {wanted} is wanted")


def _word(value: object) -> str:
    return {"True": "true", "False": "false", "None": "null"}.get(str(value), str(value))
