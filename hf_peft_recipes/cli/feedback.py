"""`feedback …`: what is done with feedback outside of a run."""

import typer

from hf_peft_recipes.cli.people import collect_command, serve_command
from hf_peft_recipes.cli.records import convert_command, import_command, validate_command

feedback_app = typer.Typer(name="feedback", help="Feedback on a model's answers: given, checked, converted.")

feedback_app.command("collect")(collect_command)
feedback_app.command("serve")(serve_command)
feedback_app.command("validate")(validate_command)
feedback_app.command("convert")(convert_command)
feedback_app.command(
    "import",
    # Columns are named by flags of their roles.
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)(import_command)
