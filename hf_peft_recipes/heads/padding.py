"""How batches are padded, whatever the head."""

PADDED_TO = 8
"""Rows are padded to a multiple of so many tokens: tensor cores work in eights, and on a CPU oneDNN makes a kernel for
every width that it meets."""
