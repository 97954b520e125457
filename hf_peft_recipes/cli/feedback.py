"""`feedback …`: what is done with feedback outside of a run."""

import typer

feedback_app = typer.Typer(name="feedback", help="Feedback on a model's answers: given, checked, converted.")
