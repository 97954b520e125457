"""The token that a page of feedback asks for: made once for each target, and kept for its owner alone."""

import os
import re
import secrets
import tempfile
from pathlib import Path

_TOKEN = re.compile(r"[\w-]{32}")


def kept_token(name: str) -> str:
    """Return the token that goes by a name, the same after a restart, so that open pages go on.

    It lies below Hugging Face's own folder (`HF_HOME`), beside the token of the Hub, and never in a run's folder.

    Args:
        name: of the file.
    """
    from huggingface_hub.constants import HF_HOME

    path = Path(HF_HOME) / "hf_peft_recipes" / "feedback" / name
    path.parent.parent.mkdir(parents=True, exist_ok=True)
    # Who can write there could put a token of their own in its place.
    path.parent.mkdir(mode=0o700, exist_ok=True)
    if not path.is_file() or not _TOKEN.fullmatch(path.read_text(encoding="utf-8")):
        # Whole or not at all, as an empty one would be anybody's; mkstemp's files are their owner's.
        handle, temporary = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(secrets.token_urlsafe(24))
        Path(temporary).replace(path)
    return path.read_text(encoding="utf-8")
