"""Exact match."""


def exact(answer: str, reference: str) -> float:
    """Return 1.0 when the answer is the reference but for white space, else 0.0."""
    return float(" ".join(answer.split()) == " ".join(reference.split()))
