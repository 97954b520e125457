"""What a run of transformers' Trainer does, seen from outside: batches, losses, gradient norms, seconds, memory.

Nothing is taken from logs, and every framework that trains through the Trainer is watched by this same code. It runs in
environments of other frameworks too, so it needs only torch, transformers, accelerate and PEFT.
"""

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from transformers import Trainer, TrainerCallback

from benchmarks.peers.job import Job

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes")
IGNORED = -100


class Recorder(TrainerCallback):
    """Keeps, for every optimizer step, what it read, what came out and how long it took."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.step_seconds: list[float] = []
        self.losses: list[float] = []
        self.gradient_norms: list[float] = []
        self.batches: list[Batch] = []
        """One a step: its micro-batches together."""
        self.first_step_seconds = 0.0
        self.peak_memory_bytes = 0
        self._losses: list[torch.Tensor] = []
        self._norm: Any = None
        self._mark = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock, and count memory from here."""
        reset_peak_memory()
        self._mark = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take the step's time and figures."""
        synchronize()
        self.step_seconds.append(time.perf_counter() - self._mark)
        if len(self.step_seconds) == 1:
            self.first_step_seconds = time.time() - psutil.Process().create_time()
        self.losses.append(float(torch.stack([loss.detach().float().cpu() for loss in self._losses]).sum()))
        self.gradient_norms.append(float(self._norm))
        self._losses = []
        self._mark = time.perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Leave logging out of the next step's time."""
        self._mark = time.perf_counter()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take the peak before anything is saved."""
        self.peak_memory_bytes = peak_memory_bytes()

    def take_batches(self, batches: list[Any]) -> None:
        """Note what the next step reads."""
        self.batches.append(Batch.of(batches))

    def take_loss(self, loss: torch.Tensor) -> None:
        """Note the loss of a micro-batch, scaled so that those of a step add up."""
        self._losses.append(loss)

    def take_norm(self, norm: Any) -> None:
        """Note the gradient's norm before it is clipped."""
        self._norm = norm

    def report(self, framework: str | None = None) -> dict[str, Any]:
        """Return the record of the run, as every contender prints it.

        Args:
            framework: the package whose version belongs to the record.
        """
        # The Trainer may fetch batches that it never trains on.
        batches = self.batches[: len(self.step_seconds)]
        return report(
            self.job,
            step_seconds=self.step_seconds,
            tokens=[batch.tokens for batch in batches],
            supervised_tokens=[batch.supervised for batch in batches],
            positions=[batch.positions for batch in batches],
            squared_lengths=[batch.squared_lengths for batch in batches],
            digests=[batch.digest for batch in batches],
            losses=self.losses,
            gradient_norms=self.gradient_norms,
            peak_memory_bytes=self.peak_memory_bytes,
            first_step_seconds=self.first_step_seconds,
            versions=installed_versions(framework),
        )


class Batch:
    """What one optimizer step reads."""

    def __init__(self) -> None:
        self.tokens = 0
        """That are no padding."""
        self.supervised = 0
        """That carry loss."""
        self.positions = 0
        """Padding included."""
        self.squared_lengths = 0
        """The sum of the squares of the documents' lengths in tokens: what attention within documents costs."""
        self._digest = hashlib.sha256()

    @classmethod
    def of(cls, batches: list[Any]) -> "Batch":
        """Return that of a step's micro-batches, as the collator made them."""
        batch = cls()
        for one in batches:
            batch.add(*(one.get(key) for key in ("input_ids", "labels", "attention_mask", "position_ids")))
        return batch

    def add(self, ids: Any, labels: Any, mask: Any = None, places: Any = None) -> None:
        """Add one micro-batch.

        Args:
            ids: of shape (rows, positions).
            labels: as `ids`, not shifted.
            mask: as `ids`, other than zero where there is a token; or of shape (rows, 1, positions, positions), true or
                0.0 where a token sees another; None where every position is a token.
            places: as `ids`, the position of a token in its document; None where a row is a document.
        """
        ids, labels = ids.cpu(), labels.cpu()
        real, starts = _documents(ids, mask, places)
        self.tokens += int(real.sum())
        self.positions += ids.numel()
        self.supervised += int((labels[:, 1:] != IGNORED).sum())
        edges = [*starts[real].nonzero().flatten().tolist(), int(real.sum())]
        self.squared_lengths += sum((end - start) ** 2 for start, end in pairwise(edges))
        # The first token of a document follows nothing, whatever a collator writes beside it.
        told = torch.where(starts, IGNORED, labels)
        self._digest.update(torch.stack([ids[real], told[real]]).long().numpy().tobytes())

    @property
    def digest(self) -> str:
        """Of ids and labels in their order, padding left out."""
        return self._digest.hexdigest()[:16]


def _documents(ids: torch.Tensor, mask: Any, places: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return where there are tokens, and where documents start."""
    if mask is not None and mask.dim() == 4:
        seen = mask[:, 0].cpu()
        seen = seen if seen.dtype == torch.bool else seen == 0
        real = seen.diagonal(dim1=1, dim2=2)
        return real, (seen.to(torch.uint8).argmax(-1) == torch.arange(ids.shape[1])) & real
    real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.cpu() != 0
    found = real.long().cumsum(1) - 1 if places is None else places.cpu().expand_as(ids)
    return real, (found == 0) & real


def report(job: Job, step_seconds: list[float], tokens: list[int], **others: Any) -> dict[str, Any]:
    """Return the record of a run with its rates, the steps of warm-up left out."""
    timed = slice(min(job.warmup, len(step_seconds) - 1), None)
    seconds, supervised = sum(step_seconds[timed]), others.get("supervised_tokens") or []
    return {
        "tokens_per_second": sum(tokens[timed]) / seconds,
        "supervised_tokens_per_second": sum(supervised[timed]) / seconds if supervised else None,
        "step_seconds": step_seconds,
        "tokens": tokens,
        **others,
        "threads": torch.get_num_threads(),
    }


@contextmanager
def watching(job: Job) -> Iterator[Recorder]:
    """Watch the next training of this process, started from the job's adapter where it names one."""
    recorder = Recorder(job)
    train, get_batches, step = Trainer.train, Trainer.get_batch_samples, Trainer.training_step
    clip = Accelerator.clip_grad_norm_

    def watched_train(self: Any, *arguments: Any, **keywords: Any) -> Any:
        if job.adapter:
            load_adapter(self.model, Path(job.adapter))
        self.add_callback(recorder)
        return train(self, *arguments, **keywords)

    def watched_batches(self: Any, *arguments: Any, **keywords: Any) -> Any:
        found = get_batches(self, *arguments, **keywords)
        if found[0]:
            recorder.take_batches(found[0])
        return found

    def watched_step(self: Any, *arguments: Any, **keywords: Any) -> Any:
        loss = step(self, *arguments, **keywords)
        recorder.take_loss(loss)
        return loss

    def watched_clip(self: Any, *arguments: Any, **keywords: Any) -> Any:
        norm = clip(self, *arguments, **keywords)
        recorder.take_norm(norm)
        return norm

    Trainer.train, Trainer.get_batch_samples, Trainer.training_step = watched_train, watched_batches, watched_step
    Accelerator.clip_grad_norm_ = watched_clip
    try:
        yield recorder
    finally:
        Trainer.train, Trainer.get_batch_samples, Trainer.training_step = train, get_batches, step
        Accelerator.clip_grad_norm_ = clip


def load_adapter(model: Any, folder: Path) -> None:
    """Copy an adapter's weights into the model's own, whose dtype stays."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    tensors = load_file(str(folder / "adapter_model.safetensors"))
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    left_over = set_peft_model_state_dict(model, tensors).unexpected_keys
    if left_over or len(trained) != len(tensors):
        raise ValueError(f"the adapter has {len(tensors)} tensors and the model trains {len(trained)}: {left_over[:3]}")


def installed_versions(framework: str | None = None) -> dict[str, str]:
    """Return the versions of the packages that decide what a run does."""
    versions = {}
    for package in (*PACKAGES, *([framework] if framework else [])):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def synchronize() -> None:
    """Wait for the accelerator, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def reset_peak_memory() -> None:
    """Begin to count the peak anew."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif Path("/proc/self/clear_refs").exists():
        # proc(5): writing 5 sets VmHWM to the present resident size.
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory_bytes() -> int:
    """Return the peak since the reset: allocated on the GPU, else resident in host memory."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
