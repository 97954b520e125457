"""Checkpoints on the Hub while training goes on: a branch, a thread, and no way for it to stop the run."""

import json
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from hf_peft_recipes.hub.bases import Base
from hf_peft_recipes.hub.client import client
from hf_peft_recipes.hub.contents import ADAPTER_FILES, model_files
from hf_peft_recipes.redaction import redact
from hf_peft_recipes.results import write_text

BRANCH = "checkpoints"
_LAST_WAIT_SECONDS = 60


class CheckpointPublisher(TrainerCallback):
    """Publishes each checkpoint's adapter or model to the branch `checkpoints`. What fails is counted, never raised."""

    def __init__(self, repo_id: str, base: Base) -> None:
        self._repo_id, self._base = repo_id, base
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="publish")
        self._pending: list[tuple[int, Future[Any]]] = []
        self.wait_for_seal: Callable[[], None] = lambda: None
        """Returns once the checkpoint that was just written is in its place."""
        self.published: list[int] = []
        """Steps that are on the Hub."""
        self.failed: dict[int, str] = {}
        """Step to the reason why it is not."""

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Hand the checkpoint that was just written to the thread."""
        if not state.is_world_process_zero:
            return
        self.wait_for_seal()
        folder, step = Path(args.output_dir) / f"checkpoint-{state.global_step}", state.global_step
        scratch = tempfile.TemporaryDirectory(prefix="checkpoint-")
        try:
            # Copied at once: `save_total_limit` may remove the folder while it is on its way.
            self._stage(folder, Path(scratch.name))
            self._pending.append((step, self._worker.submit(self._send, scratch, step)))
        except Exception as error:  # never the run's concern
            self.failed[step] = redact(str(error).splitlines()[0] if str(error) else type(error).__name__)

    def result(self) -> dict[str, Any]:
        """Return `{branch, published, failed}`, after a bounded wait for what is still on its way."""
        for step, sent in self._pending:
            try:
                sent.result(timeout=_LAST_WAIT_SECONDS)
                self.published.append(step)
            except Exception as error:  # never the run's concern
                self.failed[step] = redact(str(error).splitlines()[0] if str(error) else type(error).__name__)
        self._pending.clear()
        self._worker.shutdown(wait=False, cancel_futures=True)
        return {"branch": BRANCH, "published": self.published, "failed": self.failed}

    def _stage(self, folder: Path, target: Path) -> None:
        for name in model_files(folder):
            (target / name).write_bytes((folder / name).read_bytes())
        config = target / ADAPTER_FILES[1]
        if config.is_file():
            named = {"base_model_name_or_path": self._base.name, "revision": self._base.revision}
            write_text(config, json.dumps(json.loads(config.read_text(encoding="utf-8")) | named, indent=2) + "\n")

    def _send(self, scratch: Any, step: int) -> None:
        with scratch as folder:
            api = client()
            api.create_branch(self._repo_id, branch=BRANCH, exist_ok=True)
            api.upload_folder(
                repo_id=self._repo_id, folder_path=folder, revision=BRANCH, commit_message=f"Checkpoint at step {step}"
            )
