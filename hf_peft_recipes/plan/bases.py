"""The base that a plan is of, and what a recipe's run is in numbers with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from hf_peft_recipes.device import Device
from hf_peft_recipes.models import base_location
from hf_peft_recipes.plan.configs import config_values, read_base
from hf_peft_recipes.plan.job import Job
from hf_peft_recipes.plan.make_job import make_job
from hf_peft_recipes.plan.shapes import ARCHITECTURES, Shape, read_shape
from hf_peft_recipes.plan.stored import StoredWeights, as_stored, read_stored, reconcile
from hf_peft_recipes.spec import ResolvedRecipe

# It looks at data, and brings along what reads them.
if TYPE_CHECKING:
    from hf_peft_recipes.plan.documents import Documents


class Base(NamedTuple):
    """What is known of a base without its weights."""

    config: Mapping[str, Any]
    source: str
    """Path or Hub id, or the class of a model that is there already."""
    stored: StoredWeights | None = None
    """What its files hold, None where they are not at hand."""


class Described(NamedTuple):
    """A run in numbers."""

    job: Job
    shape: Shape | None
    """Of the model; None where there is no closed form."""
    missing: str
    """What has no closed form."""
    told: tuple[str, ...] = ()
    """What the files know better than the config."""


def find_base(section: Mapping[str, Any] | None, model: Any = None) -> Base:
    """Return the base of a recipe. Loads no weights.

    Args:
        section: the recipe's `model`.
        model: that is there already, in place of the one that is named.

    Raises:
        UserError: no such base, or one whose files are broken.
    """
    if model is not None:
        return Base(config_values(model.config), type(model).__name__)
    source = base_location(section)
    config, folder = read_base(source, (section or {}).get("revision"))
    return Base(config, source, read_stored(folder, source))


def describe(
    recipe: ResolvedRecipe,
    base: Base,
    device: Device,
    devices: int = 1,
    sharding: str | None = None,
    documents: Documents | None = None,
) -> Described:
    """Return the run of a recipe in numbers.

    Args:
        recipe: resolved for the device.
        base: that it trains.
        device: that it runs on.
        devices: how many of them.
        sharding: one of `job.SHARDINGS`; None for `ddp` where there are several devices.
        documents: of the data, None where those were not looked at.

    Raises:
        UserError, UnplannedError: as `make_job` raises them.
    """
    config, stored = as_stored(base.config, base.stored), base.stored
    job = make_job(recipe, config, base.source, device, devices, sharding, documents, stored.dtype if stored else None)
    kind = str(config.get("model_type"))
    if missing := f"architecture {kind!r}" if kind not in ARCHITECTURES else job.closed_form_misses():
        return Described(job, None, missing)
    shape = read_shape(job.config, base.source)
    job, told = reconcile(replace(job, quantized_elements=shape.linear_elements()), shape, base.config, stored)
    return Described(job, shape, "", tuple(told))
