"""What a person sees of a run and of data: the bar, the table, the plot, the page."""
