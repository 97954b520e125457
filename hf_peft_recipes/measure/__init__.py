"""What a run costs: memory and time by phase, the rate of its steps, and the facts that a figure needs beside it."""
