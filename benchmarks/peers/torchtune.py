"""torchtune: its environment can be made, a script for it is missing.

python -m benchmarks.peers.torchtune JOB.json
"""

from benchmarks.peers.job import give_up


def main() -> None:
    """Say what is missing."""
    give_up(
        "torchtune 0.6.1 installs and imports with torch 2.13.0 and torchao 0.15.0 (newer ones have no "
        "torchao.dtypes.nf4tensor); no script trains the job with it yet, as it has model classes, weights, tokenizers "
        "and a loop of its own"
    )


if __name__ == "__main__":
    main()
