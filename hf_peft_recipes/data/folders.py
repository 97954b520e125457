"""Which file of a folder belongs to which split."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_peft_recipes.data.readers import READERS, file_type
from hf_peft_recipes.errors import UserError

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "eval": "validation",
    "test": "test",
}
"""What a file or a split may be called, to the split's name here."""

LABELS = "labels"
"""In place of a split: every file is a label, and its lines are texts of that label."""

_NOT_DATA = {"readme", "license", "licence", "copying", "notice", "authors", "changelog", "requirements"}
_NOT_DATA_FILES = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
_SHARD = re.compile(r"(?P<name>.*?)[-.]?(?P<number>\d{5})-of-(?P<total>\d{5})$")


def files_by_split(folder: Path) -> dict[str, list[Path]]:
    """Return the folder's files by split, or all of them under `LABELS`.

    Splits are told by a word in the files' names (`train.jsonl`, `wnut17.dev.conll`, `test-00000-of-00002.parquet`), or
    by what `Dataset.save_to_disk` writes beside its files. A folder without data files that has a folder `data`, as
    repositories of data sets do, stands for that one. A lone file is `train`.

    Raises:
        UserError: no file that can be read, a file that belongs to no split or to several, a shard that is missing.
    """
    saved = _saved(folder)
    if saved:
        return saved
    files = _data_files(folder) or (_data_files(folder / "data") if (folder / "data").is_dir() else [])
    if not files:
        raise UserError(
            f"data set {str(folder)!r}: no file in the folder ends in {', '.join(READERS)}"
            if any(folder.iterdir())
            else f"data set {str(folder)!r}: the folder is empty"
        )
    _check_shards(files)
    words = {file: _split_words(file) for file in files}
    several = next((file for file in files if len(words[file]) > 1), None)
    if several:
        raise UserError(
            f"data set {str(folder)!r}: {several.name} names {' and '.join(sorted(words[several]))}; name it for one"
        )
    if any(words.values()):
        without = [file.name for file in files if not words[file]]
        if without:
            raise UserError(
                f"data set {str(folder)!r}: {without[0]} names no split though others do; name it train, validation "
                f"or test, or move it away (files: {_listed(files)})"
            )
        return _grouped(files, words)
    shards = {_shard_name(file) for file in files}
    if len(files) == 1 or (len(shards) == 1 and None not in shards):
        return {"train": files}
    if all(file_type(file) in (".txt", ".txt.gz") for file in files):
        return {LABELS: files}
    raise UserError(
        f"data set {str(folder)!r}: which file is which? Name them train, validation and test, or give one text file "
        f"a label; found {_listed(files)}"
    )


def _data_files(folder: Path) -> list[Path]:
    return sorted(
        entry
        for entry in folder.iterdir()
        if entry.is_file()
        and file_type(entry)
        and entry.name[0] not in "._"
        and entry.name.lower() not in _NOT_DATA_FILES
        and _stem(entry).lower() not in _NOT_DATA
    )


def _stem(file: Path) -> str:
    return file.name[: -len(file_type(file))]


def _split_words(file: Path) -> set[str]:
    return {SPLIT_NAMES[part] for part in re.split(r"[-.]", _stem(file).lower()) if part in SPLIT_NAMES}


def _shard_name(file: Path) -> str | None:
    found = _SHARD.match(_stem(file))
    return found["name"] + "*" if found else None


def _check_shards(files: list[Path]) -> None:
    numbers: dict[tuple[str, str, int], set[int]] = {}
    for file in files:
        if found := _SHARD.match(_stem(file)):
            key = (found["name"], file_type(file), int(found["total"]))
            numbers.setdefault(key, set()).add(int(found["number"]))
    for (name, suffix, total), present in numbers.items():
        missing = sorted(set(range(total)) - present)
        if missing:
            example = f"{name}{'-' if name else ''}{missing[0]:05d}-of-{total:05d}{suffix}"
            raise UserError(f"data set {str(files[0].parent)!r}: {len(missing)} of {total} files missing: {example} …")


def _saved(folder: Path) -> dict[str, list[Path]]:
    """Return the files that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote, nothing where neither did."""
    if (folder / "dataset_dict.json").is_file():
        splits = _content(folder / "dataset_dict.json", "splits")
        return {str(split): _saved_files(folder / str(split)) for split in splits}
    return {"train": _saved_files(folder)} if (folder / "state.json").is_file() else {}


def _saved_files(folder: Path) -> list[Path]:
    files = [folder / str(entry["filename"]) for entry in _content(folder / "state.json", "_data_files")]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise UserError(f"data set {str(folder)!r}: {missing[0]}, which state.json names, is missing")
    return files


def _content(file: Path, key: str) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))[key]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{str(file)!r}: not as save_to_disk of datasets writes it; save the data set again") from None


def _grouped(files: list[Path], words: Mapping[Path, set[str]]) -> dict[str, list[Path]]:
    groups: dict[str, list[Path]] = {}
    for file in files:
        groups.setdefault(next(iter(words[file])), []).append(file)
    for split, together in groups.items():
        # The same rows in two file types, more likely than two halves of a split.
        other = next((file for file in together if file_type(file) != file_type(together[0])), None)
        if other:
            raise UserError(
                f"data set {str(together[0].parent)!r}: {together[0].name} and {other.name} are both {split}, of "
                f"different types; keep one, or name the file itself"
            )
    return groups


def _listed(files: list[Path], limit: int = 8) -> str:
    names = ", ".join(file.name for file in files[:limit])
    return f"{names} and {len(files) - limit} more" if len(files) > limit else names


def canonical_splits(splits: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the splits under their names here: `dev` and `val` are `validation`.

    Raises:
        UserError: two of them have the same name here.
    """
    named: dict[str, Any] = {}
    origins: dict[str, Any] = {}
    for split, rows in splits.items():
        name = SPLIT_NAMES.get(str(split), str(split))
        if name in named:
            raise UserError(f"the splits {origins[name]!r} and {split!r} of the data set are both {name}; join them")
        named[name], origins[name] = rows, split
    return named
