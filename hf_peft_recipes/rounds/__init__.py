"""Feedback in rounds: the model answers, is corrected, learns from the correction; each round is measured."""
