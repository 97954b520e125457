"""From committed results to what people read: tables, plots, the figures in the README, the receipts in recipe headers.

    python -m benchmarks.report [--check] [--results FOLDER] [--readme FILE] [--recipes FOLDER]

No figure is typed: what stands between the marks of the README, in `benchmarks/results/REPORT.md` and behind
`# receipt:` in a recipe is made from the result files, each with its hardware, versions, commit and date. `--check`
writes nothing, names what would change, and ends with 1 where there is something.
"""
