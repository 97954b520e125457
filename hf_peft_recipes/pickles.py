"""Pickles, which run code when they are read: told by their names, refused, and looked into without being run.

Weights come from safetensors alone. What a checkpoint keeps beside them is read by torch as tensors and plain values
(`weights_only`), whoever reads it; the index that torch writes for a sharded one is looked into before.
"""

import os
import pickle
import re
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from hf_peft_recipes.errors import UserError

_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
WHY = "a pickle runs code when it is read, so weights come from safetensors alone"
MODEL_ADVICE = f"{WHY}; where you trust it, AutoModelForCausalLM.from_pretrained(OLD).save_pretrained(NEW) converts it"
_ADAPTER_ADVICE = (
    f"{WHY}; where you trust it, safetensors.torch.save_file(torch.load('adapter_model.bin', weights_only=True), "
    "'adapter_model.safetensors') converts it"
)
_WEIGHTS = re.compile(r"(adapter_model|pytorch_model|model)(-\d+-of-\d+)?\.(bin|pt|pth|ckpt)")
_FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
"""torch's own variable: `weights_only=False`, as some of the libraries in between have it, counts for nothing."""
_OF_ENGINES = (
    ("deepspeed.runtime.fp16.loss_scaler", "LossScaler"),
    ("deepspeed.runtime.fp16.loss_scaler", "DynamicLossScaler"),
    ("deepspeed.runtime.zero.config", "ZeroStageEnum"),
    ("deepspeed.utils.tensor_fragment", "fragment_address"),
)
"""Module and name of what DeepSpeed (0.19.8, ZeRO-2 and 3) keeps in its states beside values: each holds values."""
_REFUSAL = "Weights only load failed"
"""How torch's message begins where a file names something else than values."""
_INDEX = ".metadata"
_OF_AN_INDEX = frozenset(
    (
        *(
            f"torch.distributed.checkpoint.metadata.{name}"
            for name in (
                "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta",
                "TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
            )
        ),
        "torch.distributed.checkpoint.filesystem._StorageInfo",
        "torch.serialization._get_layout", "torch.Size", "torch.device", "collections.OrderedDict",
        "pathlib.PosixPath", "pathlib._local.PosixPath",
        *(
            f"torch.{name}"
            for name in (
                "bfloat16", "bool", "float16", "float32", "float64", "float8_e4m3fn", "float8_e5m2", "int16", "int32",
                "int64", "int8", "uint8",
            )
        ),
    )
)  # fmt: skip
"""What `torch.distributed.checkpoint` names in the index of what it writes (torch 2.13), by exact names: the name of
a pickle may lead from any module to any other."""


def is_pickle(path: Path) -> bool:
    """Return whether a file is a pickle, by its name."""
    return path.suffix in _SUFFIXES


def pickles_in(folder: Path) -> list[str]:
    """Return the names of the files in `folder` that are pickles, by their names."""
    return sorted(path.name for path in folder.iterdir() if is_pickle(path))


def adapter_advice(folder: Path) -> str:
    """Return what a message about a missing adapter goes on with: why a pickled one does not do; empty without one."""
    return f": {_ADAPTER_ADVICE}" if (folder / "adapter_model.bin").is_file() else ""


@contextmanager
def values_alone(checkpoint: str | Path | None) -> Iterator[None]:
    """Let what runs inside read tensors and plain values from a checkpoint, and nothing that runs.

    Args:
        checkpoint: the folder that training goes on from; None where it begins.

    Raises:
        UserError: the checkpoint's weights are pickles; a file of it names something else than values.
    """
    if checkpoint is None:
        yield
        return
    checkpoint = Path(checkpoint)
    if weights := next((name for name in pickles_in(checkpoint) if _WEIGHTS.fullmatch(name)), None):
        raise UserError(f"{checkpoint / weights}: {WHY}; it is not read")
    for index in sorted(checkpoint.rglob(f"*{_INDEX}")):
        _require_plain(index)
    _trust_engines()
    before = os.environ.get(_FORCE)
    os.environ[_FORCE] = "1"
    try:
        yield
    except BaseException as error:
        # Where several processes read, torch wraps what each of them raised into an exception that is no Exception.
        if _REFUSAL not in str(error):
            raise
        raise _refused(checkpoint, str(error)) from None
    finally:
        if before is None:
            del os.environ[_FORCE]
        else:
            os.environ[_FORCE] = before


def _trust_engines() -> None:
    """Let torch read what an engine that is in use keeps; one that is not in use has written nothing."""
    kept = [getattr(sys.modules[module], name) for module, name in _OF_ENGINES if module in sys.modules]
    if kept:
        import torch

        torch.serialization.add_safe_globals(kept)


def _require_plain(index: Path) -> None:
    try:
        foreign = sorted(names_in(index) - _OF_AN_INDEX)
    except Exception as error:
        # What is broken fails in any way, and what cannot be looked into is not read.
        raise UserError(f"{index} cannot be looked into ({type(error).__name__}); it is not read") from None
    if foreign:
        raise UserError(_told(index, foreign[0]))


def _refused(checkpoint: Path, told: str) -> UserError:
    """Return what torch refused in words, with the file that it stands in where that can be found."""
    found = re.search(r"GLOBAL ([\w.]+)", told)
    if found is None:
        return UserError(f"{checkpoint} holds more than values, and is not gone on from")
    for path in sorted(path for path in checkpoint.rglob("*") if is_pickle(path)):
        try:
            if found[1] in names_in(path):
                return UserError(_told(path, found[1]))
        except Exception:  # broken in some other way, which is not what was refused
            continue
    return UserError(_told(checkpoint, found[1]))


def _told(path: Path, name: str) -> str:
    return f"{path} would run {name} when it is read, which no run of ours writes; nothing of it was run"


def names_in(path: Path) -> set[str]:
    """Return what a pickle, or a file of torch, names to be imported or run. It imports and runs nothing.

    Raises whatever a broken file leads to.
    """
    found = set[str]()
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith(".pkl"):
                    with archive.open(name) as file:
                        _Inert(file, found).load()
        return found
    with path.open("rb") as file:
        # Before torch 1.6 several stood one behind the other.
        while file.peek(1):
            _Inert(file, found).load()
    return found


class _Anything:
    """Stands for whatever a pickle names: it can be called, filled and given a state, and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> "_Anything":
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __call__(self, *_: Any, **__: Any) -> "_Anything":
        return self

    def __setstate__(self, state: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def append(self, item: Any) -> None: ...

    def extend(self, items: Any) -> None: ...

    def add(self, item: Any) -> None: ...


class _Inert(pickle.Unpickler):
    def __init__(self, file: IO[bytes], found: set[str]) -> None:
        super().__init__(file)
        self._found = found

    def find_class(self, module: str, name: str) -> Any:
        self._found.add(f"{module}.{name}")
        return _Anything

    def persistent_load(self, pid: Any) -> Any:
        return _Anything()
