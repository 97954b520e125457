"""The base's fingerprint: what tells one base model from another without reading all of it, from files or over HTTP.

An adapter loads on any base whose shapes fit, and says nothing when it is the wrong one (peft#2566). So the config,
every tensor's name, shape and type, and a sample of the weights travel with the adapter and are compared before it is
loaded.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hf_peft_recipes.errors import UserError

FINGERPRINT_FILE = "base_fingerprint.json"
SAMPLED_TENSORS = 16
SAMPLE_BYTES = 4096
_CONFIG = "config.json"
_WEIGHTS = "model.safetensors"
_LONGEST_HEADER = 100_000_000
"""Bytes, by the format's own limit."""
_INDEX = "model.safetensors.index.json"
# What a config says of the file, or of how it is loaded, rather than of the model.
_NOT_OF_THE_MODEL = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache", "auto_map")

Read = Callable[[str, int, int], bytes]
"""(file name, first byte, number of bytes; -1 for all) -> bytes. Raises FileNotFoundError."""


@dataclass(frozen=True)
class Fingerprint:
    """What a base model is told by."""

    name: str
    """Where it was found: a Hub id, or the last part of a local folder's path."""
    revision: str | None
    """The Hub's commit, None for a local folder."""
    config: Mapping[str, Any]
    tensors: Mapping[str, Mapping[str, int]]
    """Name with `*` for numbers -> how many there are of each `shape type`."""
    samples: Mapping[str, str]
    """Name of a tensor -> SHA-256 of the middle `SAMPLE_BYTES` bytes of its data."""

    def to_json(self) -> str:
        """Return the fingerprint as the text of `base_fingerprint.json`."""
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"


def from_json(text: str) -> Fingerprint:
    """Return the fingerprint that `to_json` wrote.

    Raises:
        UserError: it is something else.
    """
    try:
        return Fingerprint(**json.loads(text))
    except (TypeError, ValueError) as error:
        raise UserError(f"{FINGERPRINT_FILE} is broken: {error}") from None


def fingerprint(read: Read, name: str, revision: str | None = None) -> Fingerprint:
    """Return the fingerprint of the model whose files `read` reads.

    Args:
        read: reads a part of a file by the file's name.
        name: of the model, for messages.
        revision: the commit of the files, None where there is none.

    Raises:
        UserError: there is no config, or no safetensors.
    """
    try:
        config = json.loads(read(_CONFIG, 0, -1))
        headers = read_headers(read)
    except (FileNotFoundError, ValueError, KeyError) as error:
        raise UserError(f"base {name!r} has no config and safetensors to tell it by: {error}") from None
    located = {
        tensor: (file, start, entry)
        for file, (start, header) in headers.items()
        for tensor, entry in header.items()
        if tensor != "__metadata__"
    }
    families: dict[str, Counter[str]] = {}
    for tensor, (_, _, entry) in located.items():
        kind = f"{'x'.join(map(str, entry['shape'])) or 'scalar'} {entry['dtype']}"
        families.setdefault(re.sub(r"(?<=\.)\d+(?=\.)", "*", tensor), Counter())[kind] += 1
    names = sorted(located)
    chosen = names[:: max(1, -(-len(names) // SAMPLED_TENSORS))]
    samples = {}
    for tensor in chosen:
        file, start, entry = located[tensor]
        first, last = entry["data_offsets"]
        length = min(SAMPLE_BYTES, last - first)
        middle = start + first + (last - first - length) // 2
        samples[tensor] = hashlib.sha256(read(file, middle, length)).hexdigest()
    kept = {key: value for key, value in config.items() if key not in _NOT_OF_THE_MODEL}
    return Fingerprint(name, revision, kept, {key: dict(families[key]) for key in sorted(families)}, samples)


def differences(expected: Fingerprint, found: Fingerprint) -> list[str]:
    """Return what tells the two bases apart, in words, the plainest first; empty when they are the same.

    Config keys that only one of them states are no difference: versions of transformers write more or fewer of them.
    """
    told = []
    for key in sorted(expected.config.keys() & found.config.keys()):
        if expected.config[key] != found.config[key]:
            told.append(f"config {key}: {found.config[key]!r} instead of {expected.config[key]!r}")
    for family in sorted(expected.tensors.keys() | found.tensors.keys()):
        wanted, there = dict(expected.tensors.get(family, {})), dict(found.tensors.get(family, {}))
        if wanted != there:
            told.append(f"tensors {family}: {_kinds(there)} instead of {_kinds(wanted)}")
    if not told:
        other = [name for name, digest in expected.samples.items() if found.samples.get(name) != digest]
        if other:
            told.append(f"other weights in {len(other)} of {len(expected.samples)} sampled tensors ({other[0]} …)")
    return told


def local_reader(folder: Path) -> Read:
    """Return a function that reads the files of a local folder."""

    def read(name: str, start: int, length: int) -> bytes:
        with (folder / name).open("rb") as file:
            file.seek(start)
            return file.read(length)

    return read


def read_headers(read: Read) -> dict[str, tuple[int, dict[str, Any]]]:
    """Return, of each safetensors file, where its data begin, and what its header says of each tensor.

    Args:
        read: reads a part of a file by the file's name.

    Raises:
        FileNotFoundError: there are no weights, or a part of them is missing.
        ValueError: a file is something else.
        KeyError: the index of the files names none.
    """
    try:
        files = sorted(set(json.loads(read(_INDEX, 0, -1))["weight_map"].values()))
    except FileNotFoundError:
        files = [_WEIGHTS]
    return {file: _header(read, file) for file in files}


def _header(read: Read, file: str) -> tuple[int, dict[str, Any]]:
    # Eight bytes of length, then JSON: https://github.com/huggingface/safetensors#format
    length = int.from_bytes(read(file, 0, 8), "little")
    if length > _LONGEST_HEADER:
        raise ValueError(f"{file} is no safetensors file")
    return 8 + length, json.loads(read(file, 8, length))


def _kinds(kinds: Mapping[str, int]) -> str:
    return ", ".join(f"{number} of {kind}" for kind, number in sorted(kinds.items())) or "none"
