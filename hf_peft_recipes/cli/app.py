"""The command `hf-peft-recipes`: its verbs, and what becomes of an error."""

import os
import signal
import sys
import traceback

import typer

from hf_peft_recipes import collector
from hf_peft_recipes.cli.benching import bench_command
from hf_peft_recipes.cli.certifying import certify_command
from hf_peft_recipes.cli.checkpointing import checkpoints_command
from hf_peft_recipes.cli.feedback import feedback_app
from hf_peft_recipes.cli.inspecting import inspect_command
from hf_peft_recipes.cli.merging import merge_command
from hf_peft_recipes.cli.planning import plan_command
from hf_peft_recipes.cli.publishing import publish_recipe_command, pull_command, push_command
from hf_peft_recipes.cli.recipes import copy_command, list_command, show_command
from hf_peft_recipes.cli.training import train_command
from hf_peft_recipes.cli.tuning import race_command, sweep_command
from hf_peft_recipes.cli.using import chat_command, evaluate_command
from hf_peft_recipes.cli.verifying import verify_command, verify_resume_command
from hf_peft_recipes.errors import PreemptedError, RecipeError
from hf_peft_recipes.launching import rank_from_environment
from hf_peft_recipes.redaction import redact
from hf_peft_recipes.supervision import follow_parent, is_launched, leave_code

app = typer.Typer(
    name="hf-peft-recipes",
    help="Fine-tuning recipes for Hugging Face models, picked by name.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

# Flags that are no option of the verb are fields of the recipe.
_TAKES_FIELDS = {"allow_extra_args": True, "ignore_unknown_options": True}
_SHELF, _WORK, _HUB = "Recipes", "Runs", "The Hub"

app.command("list", rich_help_panel=_SHELF)(list_command)
app.command("show", rich_help_panel=_SHELF, context_settings=_TAKES_FIELDS)(show_command)
app.command("cp", rich_help_panel=_SHELF)(copy_command)
app.command("plan", rich_help_panel=_WORK, context_settings=_TAKES_FIELDS)(plan_command)
app.command("inspect", rich_help_panel=_WORK, context_settings=_TAKES_FIELDS)(inspect_command)
app.command("train", rich_help_panel=_WORK, context_settings=_TAKES_FIELDS)(train_command)
app.command("evaluate", rich_help_panel=_WORK, context_settings=_TAKES_FIELDS)(evaluate_command)
app.command("chat", rich_help_panel=_WORK)(chat_command)
app.command("merge", rich_help_panel=_WORK, context_settings=_TAKES_FIELDS)(merge_command)
app.command("bench", rich_help_panel=_WORK, context_settings=_TAKES_FIELDS)(bench_command)
app.command("sweep", rich_help_panel=_WORK, context_settings=_TAKES_FIELDS)(sweep_command)
app.command("race", rich_help_panel=_WORK, context_settings=_TAKES_FIELDS)(race_command)
app.command("verify", rich_help_panel=_WORK)(verify_command)
app.command("verify-resume", rich_help_panel=_WORK, context_settings=_TAKES_FIELDS)(verify_resume_command)
app.command("checkpoints", rich_help_panel=_WORK)(checkpoints_command)
app.command("certify", rich_help_panel=_WORK)(certify_command)
app.command("push", rich_help_panel=_HUB)(push_command)
app.command("pull", rich_help_panel=_HUB)(pull_command)
app.command("publish-recipe", rich_help_panel=_HUB)(publish_recipe_command)
app.add_typer(feedback_app, rich_help_panel=_WORK, no_args_is_help=True)


def main() -> None:
    """Run the command line; end with the exit code that `errors.EXIT_CODES` documents."""
    collector.rest()
    # Whatever the umask: what a run writes, and what libraries write for it, is not for everybody to change.
    os.umask(os.umask(0o077) | 0o002)
    try:
        follow_parent()
        app()
    except SystemExit as end:
        leave_code(end.code if isinstance(end.code, int) else 0)
        raise
    except PreemptedError as error:
        _fail(str(error), error.exit_code, told=rank_from_environment() == 0)
    except RecipeError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except BrokenPipeError:
        # The reader (`head`, a pager) has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        print(redact(traceback.format_exc()), end="", file=sys.stderr)
        _fail(f"{type(error).__name__}: {error} (a fault of this software or of a library below it)", 1)


def _fail(message: str, exit_code: int, told: bool = True) -> None:
    if is_launched():
        # A launcher that has seen one process end asks the others to, in the middle of their ending.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    leave_code(exit_code)
    # Launchers turn every code into 1, so the line itself carries it.
    code = f" [exit code {exit_code}]" if is_launched() else ""
    if told:
        from hf_peft_recipes.feedback.people.terminal import visible

        # It may quote a row of anybody's, or a name in a file.
        print(visible(redact(f"error: {' '.join(message.split())}{code}")), file=sys.stderr)
    sys.exit(exit_code)
