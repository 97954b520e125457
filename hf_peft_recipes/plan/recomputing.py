"""How much of a model a run computes again: nothing where all fits, else the cheapest that is enough, and no more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hf_peft_recipes.device import Device
from hf_peft_recipes.errors import RecipeError
from hf_peft_recipes.plan.bases import Base, describe
from hf_peft_recipes.plan.estimates import Estimates
from hf_peft_recipes.plan.job import Job
from hf_peft_recipes.plan.profiles import find_profile
from hf_peft_recipes.plan.sizes import uncollected
from hf_peft_recipes.spec import ResolvedRecipe
from hf_peft_recipes.spec.recompute import NOTHING, Recompute

# It looks at data, and brings along what reads them.
if TYPE_CHECKING:
    from hf_peft_recipes.plan.documents import Documents

GIB = 2**30
RESERVE = 0.03
"""Share of a device's memory that is left where something is computed again: a plan is off by as much (README)."""


@dataclass(frozen=True)
class Chosen:
    """What a run computes again because it would not fit otherwise."""

    amount: Recompute
    layers: int
    """That the model has."""
    kept_bytes: int
    """Of the whole run, planned, were all kept."""
    planned_bytes: int
    """Of the run as it is."""
    memory_bytes: int
    """Of the device."""
    time_factor: float
    """Time a token, against a run that keeps all; planned."""

    def told(self) -> str:
        """Return it as a line."""
        kept, planned, memory = (size / GIB for size in (self.kept_bytes, self.planned_bytes, self.memory_bytes))
        return (
            f"recompute: {self.amount.of(self.layers)}, for {planned:.2f} of {memory:.2f} GiB in place of {kept:.2f} "
            f"(planned); a token takes {self.time_factor:.2f} times as long"
        )


def choose_for_run(
    recipe: ResolvedRecipe, base: Base, device: Device, devices: int, look: Callable[[], Documents | None]
) -> Chosen | None:
    """Return what a run computes again so that it fits; None where it fits as it is, or cannot be planned.

    Args:
        recipe: resolved.
        base: that it trains.
        device: that it runs on.
        devices: how many of them, each with the whole model.
        look: looks at the data, which is done only where rows that are all full would not fit.
    """

    def chosen(documents: Documents | None) -> Chosen | None:
        job, shape, *_ = describe(recipe, base, device, devices, documents=documents)
        if shape is None or job.checkpointing:
            return None
        estimates = Estimates(shape, find_profile(device))
        with uncollected():
            made = replace(job, recompute=choose(job, estimates))
            kept, planned = (estimates.memory(one).total_bytes for one in (job, made))
            factor = estimates.seconds(made) / estimates.seconds(job)
        found = Chosen(made.recompute, shape.layers, kept, planned, device.memory_bytes, factor)
        return found if found.amount else None

    try:
        return chosen(look()) if chosen(None) else None
    except RecipeError:
        # A run that nobody can plan trains all the same; what is wrong with it, it says itself.
        return None


def everything(job: Job) -> Job:
    """Return the same run with all blocks computed again, and on a GPU offloaded: it cannot keep less."""
    return replace(job.keeping_all(), recompute=Recompute(job.layers, 0, offloads=not job.on_cpu))


def choose(job: Job, estimates: Estimates) -> Recompute:
    """Return what the job is to compute again so that it fits its device; all that can be where nothing is enough.

    What fits as it is, is left as it is; where something has to be computed again, a reserve is left. Where all blocks
    are not enough, their inputs go to the host's memory.

    Memory and time both change along a line with the number of layers, of which whole blocks and feed-forward parts are
    computed again. So the cheapest that fits lies where one of the two is none, or where the two are all layers; one
    block less, made up for by feed-forward parts, is tried as well, since layers are not divided. Models whose layers
    differ have nothing or all computed again.

    Args:
        job: whose own choice is left aside.
        estimates: of its model.
    """
    layers, room = estimates.shape.layers, job.device.memory_bytes
    filled = int((1 - RESERVE) * room)

    def with_(amount: Recompute) -> Job:
        return replace(job, checkpointing=False, recompute=amount)

    def size(amount: Recompute) -> int:
        memory = estimates.memory(with_(amount))
        return memory.phases["train"] if only_training else memory.total_bytes

    def least(make: Callable[[int], Recompute], most: int) -> int | None:
        """Return the smallest number above 0 whose amount fits: what is taken falls with it."""
        low, high = 0, most
        if size(make(most)) > filled:
            return None
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if size(make(middle)) <= filled else (middle, high)
        return high

    all_blocks, all_that_can_be, only_training = Recompute(blocks=layers), everything(job).recompute, False
    if size(NOTHING) <= room:
        return NOTHING
    if size(all_that_can_be) > room:
        # What loading or evaluation lacks is nothing that could be computed again; training may fit all the same.
        only_training = True
        if size(NOTHING) <= room:
            return NOTHING
    if size(all_blocks) > filled:
        return all_that_can_be
    if len(estimates.shape.layer_kinds()) > 1 or job.tells_layers_apart:
        return all_blocks
    edges: list[tuple[Callable[[int], Recompute], int]] = [
        (lambda number: Recompute(0, number), layers),
        (lambda number: Recompute(number, 0), layers),
        (lambda number: Recompute(number, layers - number), layers),
    ]
    blocks = least(edges[1][0], layers) or layers
    edges.append((lambda number: Recompute(blocks - 1, number), layers - blocks + 1))

    def pared(amount: Recompute) -> Recompute:
        """Return the amount without what it does not need: the last layers' parts are made anew beside all the rest."""
        fewer = [replace(amount, blocks=amount.blocks - 1), replace(amount, feed_forwards=amount.feed_forwards - 1)]
        enough = (one for one in fewer if min(one.blocks, one.feed_forwards) >= 0 and size(one) <= filled)
        found = next(enough, None)
        return amount if found is None else pared(found)

    numbers = [(make, least(make, most)) for make, most in edges]
    enough = [pared(make(number)) for make, number in numbers if number is not None]
    return min(enough, key=lambda amount: estimates.seconds(with_(amount)))
