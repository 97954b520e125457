"""Whether a recipe is still the one that a run began as."""

from collections.abc import Callable
from pathlib import Path

from hf_peft_recipes.errors import UserError
from hf_peft_recipes.spec import strict_yaml
from hf_peft_recipes.spec.entries import leaves
from hf_peft_recipes.spec.resolve import ResolvedRecipe
from hf_peft_recipes.spec.serialize import recipe_file, with_absolute_paths

KeyPath = tuple[str, ...]


def require_same(file: Path, recipe: ResolvedRecipe, may_change: Callable[[KeyPath], bool]) -> None:
    """Let a run go on as it began.

    Args:
        file: `recipe.yaml` of the run.
        recipe: that it is to go on with.
        may_change: whether a value, by its keys, makes no difference to what is done already.

    Raises:
        UserError: another value stands there now.
    """
    before, _ = strict_yaml.load(file.read_text(encoding="utf-8"), file.name)
    now, _ = strict_yaml.load(recipe_file(with_absolute_paths(recipe)), "")
    was, wanted = (dict(leaves(each)) for each in (before, now))
    for path in [*was, *(path for path in wanted if path not in was)]:
        if was.get(path) != wanted.get(path) and not may_change(path):
            raise UserError(
                f"--resume: {'.'.join(path)} is {wanted.get(path)!r} now and was {was.get(path)!r} when the run in "
                f"{str(file.parent)!r} began; what it has done rests on that"
            )
