"""`feedback collect`: one completion after the other in a plain terminal, also over ssh and with keys from a pipe."""

import hashlib
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from hf_peft_recipes.errors import UserError
from hf_peft_recipes.feedback.people.judging import JudgementError, as_feedback
from hf_peft_recipes.feedback.people.keyboard import Keyboard
from hf_peft_recipes.feedback.people.leases import alone
from hf_peft_recipes.feedback.people.queue import Queue
from hf_peft_recipes.feedback.record import FeedbackRecord
from hf_peft_recipes.feedback.samples import Sample
from hf_peft_recipes.results import open_confided

_HINTS = "a accept   r reject   e edit   c critique   s skip   u undo   q quit"
# Completions are not to move the cursor, write to the clipboard, or turn the direction of what follows.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def collect(queue: Queue, person: str, show_reference: bool = False, keyboard: Keyboard | None = None) -> None:
    """Ask somebody about what waits, until nothing does or they leave; each judgement is on disk before the next key.

    Args:
        queue: what waits.
        person: who judges.
        show_reference: also show the right answer, where there is one.
        keyboard: what is typed; by default standard input.

    Raises:
        UserError: somebody judges under this name in another terminal, or the journal cannot be read.
    """
    with alone(queue.target.journal, person):
        sitting = _Sitting(queue, person, show_reference, keyboard or Keyboard())
        try:
            sitting.run()
        finally:
            queue.release(person)
        sitting.say_where_it_stands()


class _Sitting:
    """One person at one terminal."""

    def __init__(self, queue: Queue, person: str, show_reference: bool, keyboard: Keyboard) -> None:
        self._queue, self._person, self._keyboard = queue, person, keyboard
        self._show_reference = show_reference
        self._skipped: set[str] = set()
        # An action returns the sample that comes next.
        self._actions: dict[str, Callable[[Sample], Sample | None]] = {
            "a": lambda sample: self._judge(sample, "accept"),
            "r": lambda sample: self._judge(sample, "reject"),
            "e": self._edit,
            "c": self._criticise,
            "s": self._skip,
            "u": self._undo,
            "q": lambda sample: None,
        }

    def run(self) -> None:
        sample = self._next()
        while sample is not None:
            self._show(sample)
            sample = self._ask(sample)

    def say_where_it_stands(self) -> None:
        progress = self._queue.progress(self._person)
        told = [f"{progress.judged} of {progress.total} judged"]
        if progress.waiting:
            told.append(f"{progress.waiting} wait")
        if progress.held:
            told.append(f"{progress.held} of them before somebody else")
        if self._skipped:
            told.append(f"{len(self._skipped)} skipped, which come again with the next start")
        _write(f"\n{', '.join(told)}; records in {self._queue.target.journal}\n")

    def _next(self) -> Sample | None:
        return self._queue.next(self._person, self._skipped)

    def _show(self, sample: Sample) -> None:
        progress = self._queue.progress(self._person)
        _write(f"\n[{progress.judged} of {progress.total} judged] {self._queue.target.name()}\n")
        turns = [(turn["role"], turn["content"]) for turn in sample.prompt]
        for heading, text in turns if len(turns) > 1 else [("prompt", turns[0][1])]:
            _write_text(heading, text)
        _write_text("answer", sample.completion)
        if self._show_reference and sample.reference is not None:
            _write_text("reference", sample.reference)
        said = self._queue.said(sample.id).get(self._person)
        if said is not None:
            for heading, words in (("your correction", said.correction), ("your critique", said.feedback)):
                if words is not None:
                    _write_text(heading, words)
            _write(f"\nYou said: {_verdict(said)}. It counts until you say something else.\n")

    def _ask(self, sample: Sample) -> Sample | None:
        while True:
            _write(f"\n{_HINTS} > ")
            key = self._keyboard.key()
            if key is None:
                return None
            _write(f"{visible(key)}\n")
            try:
                if key in self._actions:
                    return self._actions[key](sample)
            except JudgementError as error:
                _write(f"{error}; nothing is written\n")

    def _judge(self, sample: Sample, verdict: str, correction: str = "", critique: str = "") -> Sample | None:
        feedback = as_feedback(verdict, sample.completion, correction, critique)
        while True:
            try:
                record = self._queue.judge(self._person, sample.id, feedback)
            except (OSError, UserError) as error:
                # A full disk: the words are here as long as this waits.
                reason = str(error).rpartition(": ")[2]
                _write(f"it cannot be saved yet: {reason}; any key tries again > ")
                if self._keyboard.key() is None:
                    raise JudgementError(f"it cannot be saved: {reason}") from None
            else:
                _write(f"{_verdict(record)}.\n")
                return self._next()

    def _edit(self, sample: Sample) -> Sample | None:
        draft, said = self._draft(sample), self._queue.said(sample.id).get(self._person)
        if not draft.exists():
            before = said.correction if said is not None else None
            with open(draft, "w", encoding="utf-8", opener=open_confided) as file:
                file.write(f"{sample.completion if before is None else before}\n")
        self._start_editor(draft)
        correction = draft.read_text(encoding="utf-8", errors="replace")
        try:
            as_feedback("edit", sample.completion, correction)
        except JudgementError:
            draft.unlink()
            raise
        _write("what was wrong? (one line; empty: not said) > ")
        following = self._judge(sample, "edit", correction, self._keyboard.line() or "")
        draft.unlink()
        return following

    def _draft(self, sample: Sample) -> Path:
        # Beside the journal and under a name that can be found again: an edit that was cut off goes on with the next e.
        told = hashlib.sha256(f"{sample.id} {self._person}".encode()).hexdigest()[:16]
        return self._queue.target.journal.with_name(f".feedback-draft-{told}.txt")

    def _start_editor(self, draft: Path) -> None:
        editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
        # Ctrl-C belongs to the editor as long as it runs; a handler, as a signal that is ignored stays so in a child.
        before = signal.signal(signal.SIGINT, lambda *_: None)
        try:
            keys = None if self._keyboard.is_terminal else subprocess.DEVNULL
            code = subprocess.run([*shlex.split(editor), str(draft)], stdin=keys, check=False).returncode
        except (OSError, ValueError) as error:
            raise JudgementError(f"{editor!r} does not start ({error}); $EDITOR names an editor") from None
        finally:
            signal.signal(signal.SIGINT, before)
        if code:
            raise JudgementError(f"{editor!r} ended with code {code}; what was typed is there with the next e")

    def _criticise(self, sample: Sample) -> Sample | None:
        _write("what is wrong with it? (an empty line ends)\n")
        lines = []
        while line := self._keyboard.line():
            lines.append(line)
        return self._judge(sample, "critique", critique="\n".join(lines))

    def _skip(self, sample: Sample) -> Sample | None:
        if self._person not in self._queue.said(sample.id):
            self._skipped.add(sample.id)
        return self._next()

    def _undo(self, sample: Sample) -> Sample | None:
        before = self._queue.before(self._person, sample.id)
        if before is None:
            raise JudgementError("you have judged nothing before this")
        return before


def visible(text: str) -> str:
    """Return a text in which characters that a terminal would obey are shown by their code."""
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text.replace("\r\n", "\n"))


def _verdict(record: FeedbackRecord) -> str:
    told = "accepted" if record.label else "corrected" if record.correction is not None else "rejected"
    return f"{told}, with a critique" if record.feedback else told


def _write_text(heading: str, text: str) -> None:
    strong = ("\x1b[1m", "\x1b[0m") if sys.stdout.isatty() and "NO_COLOR" not in os.environ else ("", "")
    lines = "\n".join(f"  {line}" for line in visible(text).split("\n"))
    _write(f"\n{strong[0]}{visible(heading)}{strong[1]}\n{lines}\n")


def _write(text: str) -> None:
    # A terminal of another encoding than UTF-8 shows what it can.
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
    sys.stdout.flush()
