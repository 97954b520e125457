"""Which method goes with which objective, and where one does not, why."""

from dataclasses import dataclass

from hf_peft_recipes import registry
from hf_peft_recipes.api.shelf import lookup, resolve_recipe
from hf_peft_recipes.device import Device
from hf_peft_recipes.errors import UserError
from hf_peft_recipes.spec import kind_of


@dataclass(frozen=True)
class Pair:
    """A method with an objective."""

    method: str
    objective: str
    refused: str
    """Why they do not go together; empty where they do."""

    @property
    def name(self) -> str:
        """What the recipe of both is called."""
        return f"{self.method}+{self.objective}"


def capability_table(device: Device | str | None = None) -> list[Pair]:
    """Return every method that ships with every objective, each pair resolved.

    Args:
        device: for which they are resolved; None for this machine's.
    """
    shipped = [name for name in registry.list_names() if registry.find(name).path is not None]
    kinds = {name: kind_of(name, lookup) for name in shipped}
    methods, objectives = ([name for name in shipped if kinds[name] == kind] for kind in ("method", "objective"))
    # Those in rounds train by one of the others, once a round.
    objectives = [name for name in objectives if not resolve_recipe(name, [], device).resolved.is_in_rounds]
    return [
        Pair(method, objective, _refused(method, objective, device)) for method in methods for objective in objectives
    ]


def _refused(method: str, objective: str, device: Device | str | None) -> str:
    try:
        resolve_recipe(f"{method}+{objective}", [], device)
    except UserError as error:
        return str(error)
    return ""
