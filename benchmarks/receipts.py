"""Makes the receipts that ship beside the recipes: what a standard short run of each left, on this machine.

    python -m benchmarks.receipts [NAME …] [--out recipes/receipts]

`hf-peft-recipes verify NAME` holds another machine to them.
"""

import argparse
import json
import sys
from pathlib import Path

from hf_peft_recipes.api import list_recipes
from hf_peft_recipes.bench.receipts import make_receipt, receipts_folder
from hf_peft_recipes.bench.suite import require_quiet
from hf_peft_recipes.errors import RecipeError
from hf_peft_recipes.measure.facts import commit_of
from hf_peft_recipes.results import write_text


def make_receipts(names: list[str], folder: Path) -> None:
    """Write a receipt a recipe, all of the commit that is checked out now.

    Args:
        names: of recipes.
        folder: where they are written.

    Raises:
        UserError: an unknown recipe, or a busy GPU.
        ReceiptError: a run failed.
    """
    require_quiet()
    # Receipts that are written on the way are no change of the code.
    commit = commit_of(Path(__file__).parent)
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        receipt = make_receipt(name) | {"commit": commit}
        write_text(folder / f"{name}.json", json.dumps(receipt, indent=1, ensure_ascii=False) + "\n")
        print(f"{name}: loss {receipt['losses'][0]:.4f} to {receipt['losses'][-1]:.4f}", file=sys.stderr, flush=True)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="recipes; all by default")
    parser.add_argument("--out", type=Path, default=receipts_folder())
    options = parser.parse_args()
    try:
        make_receipts(options.names or list_recipes(), options.out)
    except RecipeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
