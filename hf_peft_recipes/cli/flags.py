"""From words of the command line to overrides: `--learning_rate 1e-4`, `--r=16`, `--packing`, `--bias none`."""

from collections.abc import Sequence

from hf_peft_recipes.errors import UserError
from hf_peft_recipes.spec import Override


def parse_flags(words: Sequence[str]) -> list[Override]:
    """Return one override a flag. A flag without a value means true, several words make a list, `-` and `_` are alike.

    Raises:
        UserError: a word that belongs to no flag.
    """
    overrides = []
    position = 0
    while position < len(words):
        word = words[position]
        if not word.startswith("--") or word == "--":
            raise UserError(f"{word!r} belongs to no flag; flags are written --name value")
        name, has_value, value = word.removeprefix("--").partition("=")
        position += 1
        values = [value] if has_value else []
        while not has_value and position < len(words) and not words[position].startswith("--"):
            values.append(words[position])
            position += 1
        key = name.replace("-", "_")
        given = "true" if not values else values[0] if len(values) == 1 else tuple(values)
        overrides.append(Override(key, given, f"--{key}", is_text=True))
    return overrides
