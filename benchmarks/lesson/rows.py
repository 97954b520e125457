"""The rows: what the model is told before the lesson, what it is asked in it, and what it is held to."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from random import Random

from benchmarks.lesson.book import Book
from benchmarks.lesson.teacher import question, say, statement

REFINE_TEMPLATE = "{prompt} {completion} {feedback}"
"""How a new try is asked for, in the lesson as in the demonstrations before it."""
THINGS_ASKED = 2
_RIGHT_OF_KNOWN, _RIGHT_OF_OTHERS = 0.7, 0.1
"""How often a wrong answer of a demonstration is right about a thing: much as the model will be."""
_OFF_TOPIC = 0.1
"""How often it tells of another thing than was asked for."""

Row = dict[str, str]


@dataclass(frozen=True)
class Lesson:
    """All rows of one seed."""

    start: list[Row]
    """What the model is told before: some answers, and how to take up what is said of one."""
    asked: list[Row]
    """Prompts of the rounds, with their references, which only the teacher sees."""
    held_out: list[Row]
    """In no other list, and of all things alike."""


def make_lesson(
    book: Book, seed: int, told: int = 500, demonstrations: int = 3500, asked: int = 256, held_out: int = 200
) -> Lesson:
    """Return the rows of a seed.

    Args:
        book: what is true.
        seed: of the rows.
        told: answers that are told before the lesson, of known things alone.
        demonstrations: of taking up what is said of a wrong answer.
        asked: prompts of the rounds.
        held_out: rows to be scored on.
    """
    random = Random(seed)
    pairs = [(one, other) for one in book.truth for other in book.truth if one < other]
    chosen = [random.sample(pair, THINGS_ASKED) for pair in random.sample(pairs, asked + held_out)]
    rows = [_row(things, book.truth) for things in chosen]
    held = {frozenset(things) for things in chosen[:held_out]}
    start = [*_told(book, random, told, held), *_demonstrations(book, random, demonstrations)]
    random.shuffle(start)
    return Lesson(start, rows[held_out:], rows[:held_out])


def _row(things: Sequence[str], truth: dict[str, str]) -> Row:
    return {"prompt": question(things), "completion": statement({thing: truth[thing] for thing in things})}


def _told(book: Book, random: Random, number: int, held: Collection[frozenset[str]]) -> list[Row]:
    found: list[Row] = []
    while len(found) < number:
        things = random.sample(book.known, random.randint(1, THINGS_ASKED))
        if frozenset(things) not in held:
            found.append(_row(things, book.truth))
    return found


def _demonstrations(book: Book, random: Random, number: int) -> list[Row]:
    """Return wrong answers, what is said of them, and what follows.

    Nothing is given away of things that are not known: their qualities are drawn anew each time.
    """
    found: list[Row] = []
    while len(found) < number:
        things = random.sample(list(book.truth), random.randint(1, THINGS_ASKED))
        truth = {thing: book.truth[thing] if thing in book.known else random.choice(book.qualities) for thing in things}
        tried = dict[str, str]()
        for thing, quality in truth.items():
            is_right = random.random() < (_RIGHT_OF_KNOWN if thing in book.known else _RIGHT_OF_OTHERS)
            named = random.choice(list(book.truth)) if random.random() < _OFF_TOPIC else thing
            tried[named] = quality if is_right else random.choice(book.qualities)
        prompt, answer, right = question(things), statement(tried), statement(truth)
        if answer != right:
            said = {"prompt": prompt, "completion": answer, "feedback": say(answer, right)}
            found.append({"prompt": REFINE_TEMPLATE.format(**said), "completion": right})
    return found
