"""Language feedback: what is said of a model's answers, by programs, models and people, in one form of record."""
