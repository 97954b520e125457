"""Checkpoints that are whole or not there: written beside, synced, listed in a manifest, renamed, verified."""

from hf_peft_recipes.checkpoints.manifest import MANIFEST_FILE, Batch, Manifest, StoredFile, read_manifest
from hf_peft_recipes.checkpoints.verdicts import Verdict, list_checkpoints, newest_good, verify

__all__ = [
    "MANIFEST_FILE",
    "Batch",
    "Manifest",
    "StoredFile",
    "Verdict",
    "list_checkpoints",
    "newest_good",
    "read_manifest",
    "verify",
]
