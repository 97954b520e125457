"""Faults put into runs on purpose: at the n-th change of the disk, in files that lie there, by signals, by a full disk."""
