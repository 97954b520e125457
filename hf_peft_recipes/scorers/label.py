"""Labels that are answered as text."""


def normalized(text: str) -> str:
    """Return the label that an answer names: without case, white space and marks at its ends."""
    return text.strip().strip(".!,;:'\"").strip().casefold()


def label(answer: str, reference: str) -> float:
    """Return 1.0 when the answer names the reference's label and nothing else, else 0.0."""
    return float(normalized(answer) == normalized(reference))
