"""Who quantises a base: what transformers is told of the section `quantization`, and what is mended of the result."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from hf_peft_recipes import four_bit
from hf_peft_recipes.errors import UserError
from hf_peft_recipes.spec.quantized import (
    BITSANDBYTES,
    FLOAT8,
    TORCHAO,
    kind_of_base,
    method_of,
    section_of,
)

_KEPT_WHOLE = {BITSANDBYTES: "llm_int8_skip_modules", TORCHAO: "modules_to_not_convert"}
"""How each names the modules that it is to leave whole."""


def check_installed(section: Mapping[str, Any] | None) -> None:
    """Raise a UserError where what quantises is a package that is not installed.

    Args:
        section: `quantization` of a recipe; None where it has none.
    """
    if method_of(section) == TORCHAO and find_spec("torchao") is None:
        raise UserError(
            "quantization.quant_method torchao comes from a package that is not installed: "
            "pip install 'hf-peft-recipes[fp8]'"
        )


def make_config(section: Mapping[str, Any]) -> Any:
    """Return transformers' configuration of the quantisation.

    Args:
        section: `quantization` of a recipe, or what a certificate says of one: names are looked up, and nothing is run.

    Raises:
        UserError: an argument is refused, or the package is not installed.
    """
    check_installed(section)
    given = {key: value for key, value in section.items() if key != "quant_method"}
    try:
        if method_of(section) == TORCHAO:
            return _torchao(**given)
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(**given)
    except (TypeError, ValueError) as error:
        raise UserError(f"quantization: {error}") from None


def _torchao(quant_type: str, **given: Any) -> Any:
    from torchao.quantization import Float8WeightOnlyConfig
    from transformers import TorchAoConfig

    known = {"Float8WeightOnlyConfig": Float8WeightOnlyConfig}
    if quant_type not in known:
        raise UserError(f"quantization.quant_type {quant_type!r} is not known here (known: {', '.join(known)})")
    return TorchAoConfig(known[quant_type](), **given)


def keeping_whole(section: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return the section as it leaves further modules whole.

    Args:
        section: `quantization` of a recipe.
        names: of the modules.
    """
    key = _KEPT_WHOLE[method_of(section)]
    return {**section, key: sorted({*names, *(section.get(key) or ())})}


def mend(model: Any) -> None:
    """Undo what libraries do to quantised weights and should not.

    Args:
        model: quantised or not, loaded.
    """
    from hf_peft_recipes import float8

    four_bit.mend(model)
    float8.mend(model)


def dequantize(model: Any) -> Any:
    """Return a quantised model with its weights made whole.

    Args:
        model: of transformers; it is changed.

    Raises:
        UserError: it is quantised in a way of which none is known back.
    """
    from hf_peft_recipes import float8

    section = section_of(model.config.quantization_config.to_dict())
    if method_of(section) != TORCHAO:
        return model.dequantize()
    if kind_of_base(section) != FLOAT8:
        raise UserError(f"there is no way known to make weights whole that torchao's {section['quant_type']} has made")
    return float8.dequantize(model)
