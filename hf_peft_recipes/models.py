"""The model of a run: tokenizer, base weights, quantisation and adapter, from safetensors only."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_peft_recipes import collector, pickles, quantizers
from hf_peft_recipes.embedded import EMBEDDED
from hf_peft_recipes.errors import UserError, did_you_mean
from hf_peft_recipes.sharding import size

_CONFIG_KEYS = ("revision", "trust_remote_code", "subfolder", "cache_dir")
"""What of the section `model` says where files are found, whichever they are."""


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of parameters; a weight that is stored in 4 bits counts as one."""

    trainable: int
    total: int


def base_location(model_section: Mapping[str, Any] | None) -> str:
    """Return the path or Hub id that the section names; the embedded model's folder when it names none."""
    name = (model_section or {}).get("name_or_path")
    return str(EMBEDDED[name]) if name in EMBEDDED else str(name)


def check_base(model_section: Mapping[str, Any] | None) -> None:
    """Raise a UserError when the section names a local folder from which no model can be loaded. Loads nothing."""
    name = base_location(model_section)
    folder = Path(name).expanduser()
    if not folder.exists():
        # A Hub id is `name` or `user/name`.
        if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
            near = [entry.name for entry in folder.parent.iterdir()] if folder.parent.is_dir() else []
            raise UserError(f"model {name!r}: no such folder{did_you_mean(folder.name, near)}")
        return
    if not folder.is_dir():
        told = f"; {pickles.MODEL_ADVICE}" if pickles.is_pickle(folder) else ""
        raise UserError(f"model {name!r} is a file; a folder with config.json and safetensors is wanted{told}")
    if (folder / "adapter_config.json").is_file():
        raise UserError(f"model {name!r} holds an adapter; give the base model that it was trained on")
    if not (folder / "config.json").is_file():
        raise UserError(f"model folder {name!r} has no config.json")
    if not any(folder.glob("*.safetensors")):
        pickled = pickles.pickles_in(folder)
        hint = f"; {pickled[0]} is a pickle, and {pickles.MODEL_ADVICE}" if pickled else ""
        raise UserError(f"model folder {name!r} has no weights (*.safetensors){hint}")


def load_tokenizer(model_section: Mapping[str, Any] | None) -> Any:
    """Return the tokenizer of the base, with a pad token.

    Raises:
        UserError: it cannot be loaded.
    """
    from transformers import AutoTokenizer

    section = model_section or {}
    kept = {key: section[key] for key in _CONFIG_KEYS if key in section}
    tokenizer = _from_pretrained(AutoTokenizer, base_location(section), "tokenizer", kept)
    if tokenizer.pad_token is None:
        # Labels and masks are explicit everywhere, so the end token still carries loss where it ends an answer.
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_base(
    auto_class: Any,
    model_section: Mapping[str, Any] | None,
    quantization: Mapping[str, Any] | None,
    head: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Any:
    """Return the base model, its weights in the section's dtype or quantised.

    Args:
        auto_class: the class that loads it, `transformers.AutoModelForCausalLM` for one.
        model_section: keyword arguments of `from_pretrained`, and `name_or_path`.
        quantization: the recipe's section, keyword arguments of `BitsAndBytesConfig` or `TorchAoConfig`; None for a
            base that is not quantised.
        head: further keyword arguments, which the model's head needs.
        seed: from which the weights of a head are drawn that the files do not hold.

    Raises:
        UserError: the model cannot be loaded, or an argument is refused.
    """
    from transformers import set_seed

    # Whatever the work is, its imports are over once there is a model.
    collector.resume()
    keywords = {key: value for key, value in (model_section or {}).items() if key != "name_or_path"}
    location, loaded = base_location(model_section), {"use_safetensors": True, "output_loading_info": True}

    def load(drawn: Sequence[str]) -> tuple[Any, Sequence[str]]:
        quantized = _quantizing(beside_head(quantization, drawn) if head else quantization) if quantization else {}
        if head:
            set_seed(seed)
        given = {**(head or {}), **quantized, **keywords, **loaded}
        model, found = _from_pretrained(auto_class, location, "model", given)
        _check_drawn(model, found["missing_keys"], location)
        return model, sorted({_whole_head(model, name.rpartition(".")[0]) for name in found["missing_keys"]})

    model, drawn = load(())
    if head and quantization and drawn:
        # What is drawn is trained, and must not be quantised; which modules that are is known only now.
        model, drawn = load(drawn)
    quantizers.mend(model)
    model.drawn_modules = drawn
    return model


CLASSIFIERS = ("score", "classifier", "pre_classifier", "classification_head")
"""What transformers calls the heads of classifiers, which are trained whole."""


def _whole_head(model: Any, name: str) -> str:
    """Return the head that a module is a part of, and the module itself where it is one of the base's own."""
    first = name.partition(".")[0]
    return name if first == model.base_model_prefix else first


def _check_drawn(model: Any, names: Collection[str], location: str) -> None:
    """Raise a UserError where a base has too little of what its class wants to be a base of it."""
    missing = sum(size(parameter) for name, parameter in model.named_parameters() if name in names)
    if missing > MOST_DRAWN * count_parameters(model).total:
        kind = type(model).__name__
        raise UserError(
            f"model {location!r} cannot be loaded as {kind}: its files lack {len(names)} tensors ({min(names)} …), "
            "which would be drawn at random"
        )


MOST_DRAWN = 0.2
"""A head that the files lack is a small share of a model; more than this is another kind of model."""


def beside_head(quantization: Mapping[str, Any], drawn: Sequence[str]) -> dict[str, Any]:
    """Return the section as it quantises a base, and not the classifier on it.

    Args:
        quantization: the recipe's section.
        drawn: names of the modules that the base's files do not hold.
    """
    return quantizers.keeping_whole(quantization, [*CLASSIFIERS, *drawn])


def drawn_modules(model: Any) -> list[str]:
    """Return the names of the modules that the base's files did not hold: their weights were drawn."""
    return list(getattr(model, "drawn_modules", []))


def quantize(model: Any, quantization: Mapping[str, Any]) -> Any:
    """Return a model with the same weights, quantised.

    Args:
        model: of transformers, not quantised.
        quantization: the recipe's section.

    Raises:
        UserError: an argument is refused.
    """
    quantized = type(model).from_pretrained(
        None, config=model.config, state_dict=model.state_dict(), dtype=model.dtype, **_quantizing(quantization)
    )
    if getattr(model, "generation_config", None) is not None:
        quantized.generation_config = model.generation_config
    quantizers.mend(quantized)
    return quantized


def base_files(model_section: Mapping[str, Any] | None) -> tuple[Path, str | None]:
    """Return the folder with the base's files, and their commit where they come from the Hub.

    Raises:
        UserError: they are neither here nor to be had.
    """
    from transformers.utils import cached_file

    section, location = model_section or {}, base_location(model_section)
    folder = Path(location).expanduser()
    if folder.is_dir():
        return folder.resolve(), None
    try:
        config = Path(cached_file(location, "config.json", revision=section.get("revision"))).parent
    except OSError as error:
        raise UserError(f"model {location!r}: {str(error).splitlines()[0]}") from None
    # The cache keeps a revision's files in a folder that is named after its commit.
    return config, config.name


def count_parameters(model: Any) -> ParameterCount:
    """Return how many parameters the model has and how many of them train."""
    trainable = total = 0
    for parameter in model.parameters():
        number = size(parameter)
        if parameter.__class__.__name__ == "Params4bit":
            # Two 4-bit weights share one stored byte.
            number = number * 2 * parameter.element_size()
        total += number
        trainable += number if parameter.requires_grad else 0
    return ParameterCount(trainable, total)


def load_configs(model_section: Mapping[str, Any] | None) -> tuple[Any, Any]:
    """Return the base's config and its generation config, without any weights.

    Raises:
        UserError: it has no config that can be read.
    """
    from transformers import AutoConfig, GenerationConfig

    section, location = model_section or {}, base_location(model_section)
    kept = {key: section[key] for key in _CONFIG_KEYS if key in section}
    config = _from_pretrained(AutoConfig, location, "config of model", kept)
    try:
        return config, GenerationConfig.from_pretrained(str(Path(location).expanduser()), **kept)
    except OSError:
        # Many models have none; transformers then takes what the config says.
        return config, GenerationConfig.from_model_config(config)


def stop_ids(generation_config: Any, tokenizer: Any) -> list[int]:
    """Return the token ids on which generation stops: those of the generation config, and the tokenizer's end token.

    Args:
        generation_config: of the base, None where it does not generate.
        tokenizer: of the base.
    """
    configured = getattr(generation_config, "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return sorted({number for number in [*ids, tokenizer.eos_token_id] if number is not None})


def context_length(config: Any) -> int | None:
    """Return how many positions a model of this config was made for, None when it does not say."""
    text = config.get_text_config()
    length = getattr(text, "max_position_embeddings", None)
    if not length:
        return None
    # Their first position is the one behind the padding's: of 514 that RoBERTa has, 512 can be used.
    unused = (text.pad_token_id or 0) + 1 if text.model_type in BEHIND_PADDING else 0
    return int(length) - unused


BEHIND_PADDING = (
    "camembert", "data2vec-text", "ibert", "longformer", "luke", "mpnet", "roberta", "roberta-prelayernorm",
    "xlm-roberta", "xlm-roberta-xl", "xmod",
)  # fmt: skip
"""Architectures that number positions from `pad_token_id + 1` on (`create_position_ids_from_input_ids`)."""


def _quantizing(quantization: Mapping[str, Any]) -> dict[str, Any]:
    from accelerate import PartialState

    # Quantisation happens while loading, so every process must load onto its own device.
    return {
        "quantization_config": quantizers.make_config(quantization),
        "device_map": {"": PartialState().device},
    }


def _from_pretrained(auto_class: Any, location: str, what: str, keywords: Mapping[str, Any]) -> Any:
    # Said outright: without a word on it transformers asks at the terminal, and takes a `y` for leave.
    given = {"trust_remote_code": False, **keywords}
    try:
        return auto_class.from_pretrained(
            str(Path(location).expanduser()) if location[:1] == "~" else location, **given
        )
    except (OSError, ValueError, TypeError, ImportError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UserError(
            f"{what} {location!r} cannot be loaded: {lines[0] if lines else type(error).__name__}{_advice(str(error))}"
        ) from error


def _advice(told: str) -> str:
    """Return what is to be done where upstream wants code, or has nothing but pickles; empty where it is neither."""
    if "trust_remote_code" in told:
        return " (--trust_remote_code true runs that code: read it before)"
    if re.search(r"file named \S*model\.safetensors", told):
        return f" If there are pickles (*.bin): {pickles.MODEL_ADVICE}"
    return ""
