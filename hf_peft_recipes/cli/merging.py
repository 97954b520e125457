"""`merge`: from the adapter of a finished run to a model that plain transformers loads."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from hf_peft_recipes.api import RunResult
from hf_peft_recipes.cli.flags import parse_flags
from hf_peft_recipes.cli.printing import print_json, print_rich
from hf_peft_recipes.cli.publishing import HUB, BaseModel, Private, PushBase, print_outcome
from hf_peft_recipes.cli.recipes import AsJson
from hf_peft_recipes.cli.using import Folder
from hf_peft_recipes.errors import UserError
from hf_peft_recipes.spec import Override

SEVERAL, GGUF = "Several adapters", "llama.cpp"


def merge_command(
    context: typer.Context,
    folder: Folder,
    target: Annotated[Path, typer.Argument(metavar="DIR", help="The merged model's folder.")],
    into: Annotated[
        str | None,
        typer.Option("--into", help="bf16, dequantized or requantized. [default: the nearest to the unmerged model]"),
    ] = None,
    max_shard_size: Annotated[str, typer.Option("--max_shard_size", help="The largest file of weights.")] = "50GB",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the merge that DIR holds.")] = False,
    combination_type: Annotated[
        str | None,
        typer.Option(
            "--combination_type",
            help="linear, cat, svd, ties, dare_ties …, as PEFT has them. [default: cat, the exact weighted sum]",
            rich_help_panel=SEVERAL,
        ),
    ] = None,
    density: Annotated[
        float | None,
        typer.Option("--density", help="The share of entries that ties and dare keep.", rich_help_panel=SEVERAL),
    ] = None,
    majority_sign_method: Annotated[
        str | None,
        typer.Option("--majority_sign_method", help="Of ties: total or frequency.", rich_help_panel=SEVERAL),
    ] = None,
    svd_rank: Annotated[
        int | None, typer.Option("--svd_rank", help="The rank that svd leaves.", rich_help_panel=SEVERAL)
    ] = None,
    gguf: Annotated[
        bool, typer.Option("--gguf", help="Write DIR/model.gguf too, with llama.cpp's converter.", rich_help_panel=GGUF)
    ] = False,
    outtype: Annotated[
        str | None, typer.Option("--outtype", help="Of the GGUF file: f16, bf16, q8_0 …", rich_help_panel=GGUF)
    ] = None,
    push: Annotated[
        str | None, typer.Option("--push", help="Publish the merged model: user/name.", rich_help_panel=HUB)
    ] = None,
    private: Private = False,
    base_model: BaseModel = None,
    push_base: PushBase = False,
    as_json: AsJson = False,
) -> None:
    """Merge a run's adapter into its base, and write a model that plain transformers loads.

    After a run on a quantised base every way to merge is scored against the unmerged adapter on the run's held-out
    rows, and the nearest one is kept.

    Several adapters on one base: `merge OUT DIR --with OTHER_OUT … --weights 0.7 0.3 --combination_type ties
    --density 0.5`; the run's own weight comes first.

    Takes flags of the run's recipe as well: --model (where the base lies now), --dataset, --evaluation.max_rows …
    """
    given = {"combination_type": combination_type, "density": density}
    given |= {"majority_sign_method": majority_sign_method, "svd_rank": svd_rank}
    flags = parse_flags(context.args)
    result = RunResult.read(folder).merge(
        target,
        into,
        adapters=_words(flags, "with"),
        weights=[_number(word) for word in _words(flags, "weights")] or None,
        combination={key: value for key, value in given.items() if value is not None},
        max_shard_size=max_shard_size,
        overwrite=overwrite,
        gguf=gguf,
        outtype=outtype,
        overrides=[flag for flag in flags if flag.name not in ("with", "weights")],
    )
    outcome = None
    if push:
        told = {"private": private, "base_model": base_model, "push_base": push_base}
        outcome = RunResult.read(target).push_to_hub(push, **told)
    if as_json:
        print_json({"folder": str(result.folder), **result.record, **({"push": outcome} if outcome else {})})
        return
    from hf_peft_recipes.report.table import merge_table

    print_rich(merge_table(result.record, str(result.folder)))
    if outcome:
        print_outcome(outcome)
    print("go on with:")
    print(f"  AutoModelForCausalLM.from_pretrained({str(result.folder)!r})")
    if result.record["gguf"]:
        print(f"  llama-cli -m {shlex.quote(str(result.folder / result.record['gguf']['file']))}")


def _words(flags: Sequence[Override], key: str) -> list[str]:
    """Return the words behind `--key`, however often it was given."""
    words = list[str]()
    for flag in flags:
        if flag.name == key:
            words += flag.value if isinstance(flag.value, tuple) else [str(flag.value)]
    return words


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise UserError(f"--weights: {word!r} is no number") from None
