"""What a card says beyond the record of a run."""

from dataclasses import dataclass

RELATIONS = ("adapter", "finetune", "merge", "quantized")
"""The Hub's `base_model_relation`."""


@dataclass(frozen=True)
class Publication:
    """Where a run is published, and what its base and its data are called on the Hub."""

    repo_id: str
    """`user/name`."""
    base_model: str
    """Hub id of the base; after full fine-tuning and after a merge, of the model that it was made from."""
    base_revision: str | None
    """Commit of the base."""
    license: str | None
    """Of the base; None when it states none."""
    gated: bool
    """Whether the base asks that its terms be accepted."""
    relation: str
    """One of `RELATIONS`."""
    datasets: tuple[str, ...]
    """Hub ids only: local data are not named."""
    language: tuple[str, ...] = ()
    """ISO 639 codes."""
    private: bool = False

    def __post_init__(self) -> None:
        if self.relation not in RELATIONS:
            raise ValueError(f"relation {self.relation!r} is none of {', '.join(RELATIONS)}")

    @property
    def name(self) -> str:
        """The repository's name without its owner."""
        return self.repo_id.rsplit("/", 1)[-1]

    @property
    def has_adapter(self) -> bool:
        """Whether what is published is an adapter, to be loaded onto its base."""
        return self.relation == "adapter"
