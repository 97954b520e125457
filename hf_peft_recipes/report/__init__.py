"""What people see of a run: the bar while it goes on, the table at its end, the plot in its folder."""

from hf_peft_recipes.report.plot import plot_losses
from hf_peft_recipes.report.progress import Progress
from hf_peft_recipes.report.table import run_table

__all__ = ["Progress", "plot_losses", "run_table"]
