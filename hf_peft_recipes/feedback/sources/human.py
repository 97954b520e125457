"""What people have said by now; who waits for them is the loop."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from hf_peft_recipes.feedback.asking import Asked, Feedback, Policy, SourceError
from hf_peft_recipes.feedback.journal import Journal
from hf_peft_recipes.feedback.sources.given import Given

PREFIX = "human:"
"""How the names of people begin in records."""


class Human:
    """The records of people in a run's journal."""

    name = "human"
    version = ""
    needs_reference = False

    def __init__(self, *, journal: str) -> None:
        """Args:
        journal: the file of the run's feedback, which need not be there yet.
        """
        self._journal = Journal(Path(journal).expanduser())

    def judge(self, asked: Sequence[Asked], policy: Policy | None) -> Iterator[tuple[Asked, Feedback | SourceError]]:
        """Yield what people said of these samples, the last word of each; nothing of those they have not seen.

        Raises:
            UserError: the journal cannot be read.
        """
        given = Given(record for record in self._journal.read() if record.source.name.startswith(PREFIX))
        for one in asked:
            found = given.of_sample(one)
            if found is not None:
                yield one, found.feedback
