"""Whether a run is fit to ship: its task has got better, and what the base could do has not got worse.

`policy`, `questions` and `verdicts` load nothing heavy; `decision` measures.
"""
