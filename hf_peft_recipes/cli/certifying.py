"""`certify`: whether what was written loads as what was trained."""

from typing import Annotated

import typer

from hf_peft_recipes.api import certify
from hf_peft_recipes.cli.printing import print_json
from hf_peft_recipes.cli.recipes import AsJson


def certify_command(
    source: Annotated[str, typer.Argument(metavar="OUT|USER/NAME", help="A folder, or what was published.")],
    as_json: AsJson = False,
) -> None:
    """Load what a run wrote, or what the Hub holds, as a plain client does, and compare it with what was trained."""
    verdict = certify(source, fresh=False)
    if as_json:
        print_json(verdict)
    else:
        for check in verdict["checks"]:
            print(f"{'ok    ' if check['ok'] else 'FAILED'}  {check['name']}: {check['detail']}")
        print(f"{verdict['status']}: {source}")
    if verdict["status"] != "passed":
        raise typer.Exit(6)
