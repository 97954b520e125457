"""What is asked of the Hub."""

import shlex
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class PushRequest:
    """Where a run goes on the Hub, and under which conditions."""

    repo_id: str
    private: bool = False
    revision: str | None = None
    """The branch; None for `main`."""
    create_pr: bool = False
    tag: str | None = None
    base_model: str | None = None
    """What a local base is on the Hub, `user/name[@revision]`."""
    push_base: bool = False
    """Publish a local base too, as `<repo_id>-base`."""
    every_save: bool = False
    """Publish every checkpoint to a branch while training goes on."""

    def command(self, folder: Path) -> str:
        """Return the command line that does this push again."""
        options = [("--revision", self.revision), ("--tag", self.tag), ("--base_model", self.base_model)]
        switches = [("--private", self.private), ("--create_pr", self.create_pr), ("--push_base", self.push_base)]
        words = ["hf-peft-recipes", "push", str(folder), self.repo_id]
        words += [word for name, value in options if value for word in (name, value)]
        return shlex.join([*words, *(name for name, on in switches if on)])
