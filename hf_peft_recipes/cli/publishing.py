"""`push`, `pull` and `publish-recipe`: what goes to the Hub, and what comes from it."""

from pathlib import Path
from typing import Annotated, Any

import typer

from hf_peft_recipes import registry
from hf_peft_recipes.api import RunResult, pull, resolve_recipe
from hf_peft_recipes.cli.printing import print_json
from hf_peft_recipes.cli.recipes import AsJson
from hf_peft_recipes.errors import UserError

HUB = "The Hub"
Private = Annotated[bool, typer.Option("--private", help="Make the repository private.", rich_help_panel=HUB)]
Revision = Annotated[str | None, typer.Option("--revision", help="The branch. [default: main]", rich_help_panel=HUB)]
CreatePr = Annotated[bool, typer.Option("--create_pr", help="Open a pull request instead.", rich_help_panel=HUB)]
Tag = Annotated[str | None, typer.Option("--tag", help="Tag the commit.", rich_help_panel=HUB)]
BaseModel = Annotated[
    str | None,
    typer.Option("--base_model", help="What a local base is on the Hub: user/name.", rich_help_panel=HUB),
]
PushBase = Annotated[
    bool, typer.Option("--push_base", help="Publish a local base too, as NAME-base.", rich_help_panel=HUB)
]


def push_command(
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="The folder of a run.")],
    name: Annotated[str, typer.Argument(metavar="USER/NAME", help="Where it goes.")],
    private: Private = False,
    revision: Revision = None,
    create_pr: CreatePr = False,
    tag: Tag = None,
    base_model: BaseModel = None,
    push_base: PushBase = False,
    as_json: AsJson = False,
) -> None:
    """Publish a finished run: adapter or model, tokenizer, recipe, record and card, in one commit that is then proved.

    After `full` the whole model goes up. The token is that of HF_TOKEN or of `hf auth login`.
    """
    outcome = RunResult.read(folder).push_to_hub(
        name, private=private, revision=revision, create_pr=create_pr, tag=tag, base_model=base_model,
        push_base=push_base,
    )  # fmt: skip
    if as_json:
        print_json(outcome)
    else:
        print_outcome(outcome)


def print_outcome(outcome: dict[str, Any]) -> None:
    """Print what became of a push."""
    where = outcome["pull_request"] or f"{outcome['url']} ({outcome['revision']}, commit {outcome['commit'][:12]})"
    print(f"{'already there' if outcome['already_there'] else 'published'}: {where}")
    base = outcome["base"]
    terms = f"licence {base['license'] or 'not stated'}"
    terms += ", gated: who loads it must have accepted its terms" if base["gated"] else ""
    print(f"base: {base['name']}@{base['revision'][:12]} ({terms})")
    checks = outcome["certificate"]["checks"]
    print(f"certificate: {sum(check['ok'] for check in checks)} of {len(checks)} checks passed in a fresh process")


def pull_command(
    name: Annotated[str, typer.Argument(metavar="USER/NAME", help="What was published; @REVISION for another state.")],
    folder: Annotated[Path | None, typer.Argument(help="Where it goes. [default: NAME]")] = None,
    as_json: AsJson = False,
) -> None:
    """Download a published run, every byte compared, ready for evaluate, chat, merge and train --adapter."""
    result = pull(name, folder)
    if as_json:
        print_json({"folder": str(result.folder), "recipe": result.record["recipe"], "name": name})
        return
    print(f"{result.folder}: {result.record['recipe']} on {result.record['base_model']}; go on with:")
    for verb in ("chat", "evaluate", "certify"):
        print(f"  hf-peft-recipes {verb} {result.folder}")
    print(f"  hf-peft-recipes train {result.record['recipe']} --adapter {result.folder} --dataset …")


def publish_recipe_command(
    file: Annotated[Path, typer.Argument(help="A recipe's YAML file.")],
    name: Annotated[str, typer.Argument(metavar="USER/NAME", help="Where it goes.")],
    private: Private = False,
) -> None:
    """Publish a recipe file, so that others run it by `train hub:USER/NAME`."""
    if not registry.looks_like_path(str(file)):
        raise UserError(f"{str(file)!r} is no recipe file (*.yaml)")
    recipe = resolve_recipe(str(file), [])
    own = [source for source in recipe.resolved.sources if not source.startswith(("recipes/", registry.HUB_PREFIX))]
    # What it extends must be there for others too; if it is not, the recipe is written out.
    text = file.read_text(encoding="utf-8") if len(own) == 1 else recipe.to_yaml()
    from hf_peft_recipes.hub.shelf import publish_recipe

    commit = publish_recipe(text, recipe.resolved.summary or recipe.name, name, private)
    print(f"published: `hf-peft-recipes train hub:{name}@{commit[:12]}`")
