"""`feedback …`: what is done with feedback outside of a run."""

import typer

from hf_peft_recipes.cli.people import collect_command, serve_command

feedback_app = typer.Typer(name="feedback", help="Feedback on a model's answers: given, checked, converted.")

feedback_app.command("collect")(collect_command)
feedback_app.command("serve")(serve_command)
