"""What a person can say of a completion, and what that is as feedback."""

import getpass
import re
from collections.abc import Callable

from hf_peft_recipes.errors import UserError
from hf_peft_recipes.feedback.asking import Feedback

_NAME = re.compile(r"\w[\w .@-]{0,39}")


class JudgementError(UserError):
    """What somebody says cannot be taken as it is; the message tells them why."""


def _accept(completion: str, correction: str, critique: str) -> Feedback:
    return Feedback(label=True, text=critique or None)


def _reject(completion: str, correction: str, critique: str) -> Feedback:
    return Feedback(label=False, text=critique or None)


def _edit(completion: str, correction: str, critique: str) -> Feedback:
    if not correction or correction == completion.strip():
        what = "unchanged" if correction else "empty"
        raise JudgementError(f"the answer is {what}: that is no correction")
    return Feedback(label=False, text=critique or None, correction=correction)


def _criticise(completion: str, correction: str, critique: str) -> Feedback:
    if not critique:
        raise JudgementError("the critique is empty")
    return Feedback(label=False, text=critique)


VERDICTS: dict[str, Callable[[str, str, str], Feedback]] = {
    "accept": _accept,
    "reject": _reject,
    "edit": _edit,
    "critique": _criticise,
}
"""By name: from completion, correction and critique to feedback. An answer that needs words or an edit is rejected."""


def as_feedback(verdict: str, completion: str, correction: str = "", critique: str = "") -> Feedback:
    """Return a person's verdict as feedback.

    Args:
        verdict: a name of `VERDICTS`.
        completion: that is judged.
        correction: the answer in its place, of an edit.
        critique: what is said of it in words.

    Raises:
        JudgementError: an edit that changes nothing, an empty critique, no such verdict.
    """
    if verdict not in VERDICTS:
        raise JudgementError(f"no verdict {verdict!r}; one of {', '.join(VERDICTS)} is wanted")
    return VERDICTS[verdict](completion, _whole(correction).strip(), _whole(critique).strip())


def check_name(name: str) -> str:
    """Return a person's name as records hold it.

    Raises:
        JudgementError: it is empty, or holds what the ids of records cannot.
    """
    told = " ".join(name.split())
    if not _NAME.fullmatch(told):
        raise JudgementError(f"name {name!r:.60}: up to 40 letters, digits, blanks and any of . _ @ - are wanted")
    return told


def login_name() -> str:
    """Return the name that somebody is logged in by.

    Raises:
        UserError: the system knows none.
    """
    try:
        return check_name(getpass.getuser())
    except (OSError, KeyError, ImportError):
        raise UserError("this login has no name; --name says who judges") from None


def _whole(text: str) -> str:
    # Half a character (a lone surrogate), as a browser may send it, cannot be written as UTF-8.
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
