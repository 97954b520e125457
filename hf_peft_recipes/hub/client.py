"""One way to call the Hub: what fails for a while is tried again, a lost answer is made up for, the rest is told.

`huggingface_hub` tries uploads again by itself, but not the commit, `create_repo` or the questions before them.
"""

import os
import time
from collections.abc import Callable
from typing import Any, TypeVar

from hf_peft_recipes.errors import HubError, RecipeError, UserError

Result = TypeVar("Result")

ATTEMPTS = 5
RETRY_VARIABLE = "HF_PEFT_RECIPES_RETRY_SECONDS"
"""Environment variable: the first pause before another attempt, in seconds; each further one is twice as long."""
LONGEST_PAUSE_SECONDS = 60.0
_PASSING = (408, 412, 429, 500, 502, 503, 504)
"""Statuses after which the same request may succeed; 412 is a commit on a head that has moved."""


def client() -> Any:
    """Return huggingface_hub's client; its token is that of `HF_TOKEN` or of `hf auth login`."""
    from huggingface_hub import HfApi

    return HfApi(library_name="hf-peft-recipes")


def call(what: str, action: Callable[[], Result], landed: Callable[[], Result | None] | None = None) -> Result:
    """Return what `action` returns, tried up to `ATTEMPTS` times.

    Args:
        what: what is being done, for the message: `me/name: commit`.
        action: makes the requests; called again as it is.
        landed: called after a failure: returns the result when the Hub has it after all and the answer was lost.

    Raises:
        UserError: the name, the permission or the revision is wrong.
        HubError: the Hub was not reached, or refused for good.
    """
    pause = float(os.environ.get(RETRY_VARIABLE, "1"))
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return action()
        except RecipeError:
            raise
        except Exception as raised:
            error = _transport_error(raised)
            if error is None and isinstance(raised, ValueError):
                # The client's own checks of names, cards and paths.
                raise UserError(f"{what}: {_first_line(raised)}") from None
            if error is None:
                raise
            status, after = _status(error)
            if status is not None and status not in _PASSING:
                raise _translated(what, error, status) from None
            if landed is not None and (result := _quietly(landed)) is not None:
                return result
            if attempt == ATTEMPTS:
                raise HubError(f"{what}: {_first_line(error)} ({ATTEMPTS} attempts)") from None
            time.sleep(min(max(after, pause), LONGEST_PAUSE_SECONDS))
            pause *= 2
    raise AssertionError("unreachable")


def _quietly(landed: Callable[[], Result | None]) -> Result | None:
    from huggingface_hub.errors import HTTPError

    try:
        return landed()
    except (HTTPError, OSError, RecipeError):
        return None


def _transport_error(raised: Exception) -> Exception | None:
    """Return what went wrong on the way to the Hub and back, where that is at the root of what was raised.

    The client wraps the failure of an upload in a RuntimeError, and that of a download in a ValueError.
    """
    from huggingface_hub.errors import HTTPError

    error: BaseException | None = raised
    while error is not None:
        if isinstance(error, (HTTPError, OSError)):
            return error
        error = error.__cause__
    return None


def _status(error: Exception) -> tuple[int | None, float]:
    """Return the answer's status and its Retry-After in seconds; no status where no answer came."""
    response = getattr(error, "response", None)
    if response is None:
        return None, 0.0
    after = str(response.headers.get("Retry-After", ""))
    return int(response.status_code), float(after) if after.isdigit() else 0.0


def _translated(what: str, error: Exception, status: int) -> RecipeError:
    from huggingface_hub.errors import GatedRepoError, RevisionNotFoundError

    if isinstance(error, GatedRepoError):
        return UserError(f"{what}: gated; accept its terms on its page, with the account of your token")
    if isinstance(error, RevisionNotFoundError):
        return UserError(f"{what}: no such revision")
    told = {
        401: "no valid token, or a private repository that it may not read: set HF_TOKEN or run `hf auth login`",
        403: "your token may not do this; it needs the right to write there",
        404: "no such repository or file, or a private one that your token may not read",
        409: _first_line(error),
    }
    return UserError(f"{what}: {told[status]}") if status in told else HubError(f"{what}: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
