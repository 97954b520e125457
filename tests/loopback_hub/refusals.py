"""What the Hub answers when it refuses."""

from typing import Any


class Refusal(Exception):
    """An answer with an error status.

    Args:
        status: the HTTP status.
        message: for people; it goes into `X-Error-Message` and into the body's `error`.
        code: the `X-Error-Code` that clients tell errors apart by.
        body: more keys of the answer's body.
        headers: more headers of the answer.
    """

    def __init__(
        self, status: int, message: str, code: str = "", body: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.status = status
        self.body = {"error": message, **(body or {})}
        first_line = message.splitlines()[0].encode("ascii", "replace").decode()
        self.headers = {"X-Error-Message": first_line, **(headers or {})}
        if code:
            self.headers["X-Error-Code"] = code


def repository_not_found(signed_in: bool) -> Refusal:
    """Return what a missing repository and one that may not be seen are answered with, so that they look alike."""
    if signed_in:
        return Refusal(404, "Repository not found", "RepoNotFound")
    return Refusal(401, "Invalid username or password.", "RepoNotFound")


def revision_not_found(revision: str) -> Refusal:
    """Return the answer to a revision that is neither a branch, a tag, a pull request nor a commit."""
    return Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")


def entry_not_found(commit: str, message: str = "Entry not found") -> Refusal:
    """Return the answer to a path that the commit does not have."""
    return Refusal(404, message, "EntryNotFound", headers={"X-Repo-Commit": commit})
