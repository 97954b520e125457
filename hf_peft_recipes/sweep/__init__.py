"""Sweeps: many runs of one recipe, each with other values, the next ones chosen by what came of those before."""
