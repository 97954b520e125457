"""A run and the Hub: what can fail is let fail before anything is trained; the run is done before it is published."""

from pathlib import Path
from typing import Any

from hf_peft_recipes import models, preemption, results
from hf_peft_recipes.errors import PreemptedError, RecipeError, UserError
from hf_peft_recipes.hub.bases import section_fingerprint
from hf_peft_recipes.hub.checkpoints import CheckpointPublisher
from hf_peft_recipes.hub.publishing import push, reserve
from hf_peft_recipes.hub.request import PushRequest
from hf_peft_recipes.preflight import RunRequest
from hf_peft_recipes.spec import ResolvedRecipe


def reserve_place(recipe: ResolvedRecipe, request: RunRequest, publication: PushRequest) -> CheckpointPublisher | None:
    """Let everything about the Hub fail now that can fail; return what publishes checkpoints, where it is asked for.

    Args:
        recipe: with every value decided.
        request: of the run.
        publication: where it goes.

    Raises:
        UserError: no token, no permission, or a base that has no name there.
    """
    section = recipe.section("model")
    if request.model is not None:
        raise UserError("--push_to_hub publishes a run whose base has a name; push this one by `result.push_to_hub(…)`")
    base = reserve(publication, models.base_location(section), lambda: section_fingerprint(section))
    return CheckpointPublisher(publication.repo_id, base) if publication.every_save else None


def publish_run(folder: Path, publication: PushRequest, record: dict[str, Any]) -> None:
    """Publish a run that is done; its record says what became of that.

    Args:
        folder: of the run.
        publication: where it goes.
        record: of the run, as it stands in the folder.

    Raises:
        HubError: the run is done and was not published.
        PreemptedError: the process was asked to end meanwhile; the run is done.
    """
    preemption.doing("while publishing a run that is done")
    try:
        record["push"] = push(folder, publication)
    except (RecipeError, PreemptedError) as error:
        # The run itself is done; the process ends with what became of the push.
        record |= {**results.read_result(folder), "exit_code": error.exit_code}
        results.write_result(folder, record)
        raise
