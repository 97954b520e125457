"""The merged model's folder: written beside its place and renamed into it, so that there is no half of one."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hf_peft_recipes import results
from hf_peft_recipes.certificate import write_statement
from hf_peft_recipes.errors import RecipeError, UserError
from hf_peft_recipes.fingerprint import FINGERPRINT_FILE
from hf_peft_recipes.float8 import stored_parts
from hf_peft_recipes.merging.request import MERGE_FILE, MergeRequest, check_free_bytes, check_target, find_converter
from hf_peft_recipes.results import RECIPE_FILE, write_text

_GGUF_FILE = "model.gguf"


def save(
    model: Any, tokenizer: Any, record: dict[str, Any], statement: Mapping[str, Any], request: MergeRequest
) -> None:
    """Write model, tokenizer, record and statement to the target; add the files' sizes to the record.

    Raises:
        UserError: the disk is full, or somebody wrote to the target meanwhile.
    """
    check_target(request.target, request.overwrite)
    check_free_bytes(request.target, size_bytes(model))
    try:
        with _beside(request.target) as folder:
            model.save_pretrained(str(folder), max_shard_size=request.max_shard_size)
            results.open_weights(folder)
            tokenizer.save_pretrained(str(folder))
            write_statement(folder, statement)
            for name in (RECIPE_FILE, FINGERPRINT_FILE):
                if (request.folder / name).is_file():
                    shutil.copyfile(request.folder / name, folder / name)
            # Written again, with more in it, once a fresh process has looked at the model.
            results.write_result(folder, {})
            record["files"] = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
            write_record(folder, record)
    except Exception as error:
        # safetensors has an error class of its own for what the system says.
        if isinstance(error, OSError) or "No space left" in str(error):
            raise UserError(f"{str(request.target)!r} could not be written: {error}") from error
        raise


def describe(merged: Mapping[str, Any], run: Mapping[str, Any], request: MergeRequest) -> None:
    """Write `merge.json` anew, and the run's record as that of the merged model, so that every verb works on it.

    Args:
        merged: the record of the merge.
        run: that of the run.
        request: what was asked for.
    """
    best = merged["variants"][merged["into"]]
    metrics = dict(run["metrics"])
    if best["metrics"] and metrics.get("intervals"):
        intervals = {**metrics["intervals"], "after": best["intervals"]}
        metrics |= {"after": best["metrics"], "intervals": intervals}
    figures = {
        f"{name}: KL from the unmerged adapter, nats a token": found["divergence"]["mean"]
        for name, found in merged["variants"].items()
        if "error" not in found
    }
    kept = {key: value for key, value in run.items() if key not in ("push", "certificate", "published_checkpoints")}
    kept |= {"certificate": merged["certificate"]} if "certificate" in merged else {}
    named = {"output_dir": str(request.target), "metrics": metrics}
    results.write_result(request.target, kept | named | {"merge": {"variant": merged["into"], "figures": figures}})
    write_record(request.target, merged)


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write the record as `merge.json` into the folder of the merged model."""
    write_text(folder / MERGE_FILE, json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def size_bytes(model: Any) -> int:
    """Return what the model's weights take on a disk, each shared one counted once."""
    kept = [tensor for tensor in model.state_dict().values() if hasattr(tensor, "nbytes")]
    tensors = {part.data_ptr(): part.nbytes for tensor in kept for part in stored_parts(tensor)}
    return sum(tensors.values())


def convert(record: dict[str, Any], request: MergeRequest) -> None:
    """Convert the merged model to GGUF with llama.cpp's converter, and enter the file in the record.

    Raises:
        RecipeError: the converter failed; what it said stands on standard error, and the merged model stays.
    """
    target = request.target / _GGUF_FILE
    words = [*find_converter(), str(request.target), "--outfile", str(target)]
    words += ["--outtype", request.outtype] if request.outtype else []
    finished = subprocess.run(words, capture_output=True, text=True, check=False)
    if finished.returncode or not target.is_file():
        target.unlink(missing_ok=True)
        print(finished.stdout + finished.stderr, file=sys.stderr, end="")
        raise RecipeError(
            f"llama.cpp's converter ended with code {finished.returncode} and left no file; "
            f"the merged model is in {str(request.target)!r}"
        )
    record["files"][target.name] = target.stat().st_size
    record["gguf"] = {"file": target.name, "outtype": request.outtype}
    write_record(request.target, record)


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    target = target.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.parent / f".{target.name}.unfinished"
    replaced = target.parent / f".{target.name}.replaced"
    # What a merge that was killed has left.
    for left in (unfinished, replaced):
        shutil.rmtree(left, ignore_errors=True)
    unfinished.mkdir()
    try:
        yield unfinished
        for path in [*unfinished.iterdir(), unfinished]:
            _flush(path)
        if target.exists():
            target.rename(replaced)
        unfinished.rename(target)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        if replaced.exists() and not target.exists():
            replaced.rename(target)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
