"""What is true in the lesson: things, each with one quality, of which the model is told only a part before it."""

from dataclasses import dataclass
from random import Random

# Behind a space each is one token of the embedded model, so that a word is told, or taken up, in one step.
_THINGS = (
    "actor aunt backpack bakery bar bistro blender box bread bridge brother button camera cashier chef colleague"
    " corner courier curry dessert dialogue diner drama drill drink father film fish friend handle harbour hero hinge"
    " hostess kettle kitchen lamp library lid market mother motor movie narrator neighbour owner park pasta person"
    " phone pie plate plot restaurant rice river room salad sauce school screen script seller sister soup station strap"
    " switch table tavern team tent terrace thriller villain waiter writer year zip"
)
_QUALITIES = (
    "attentive awful bland bright brilliant brown burnt careless charming cheerful clever clumsy confusing convincing"
    " cosy cramped crisp delicious distracted draughty dreadful dull durable excellent faulty filthy flat flimsy"
    " fragile fragrant fresh friendly gloomy graceful grating greasy great gripping grumpy handy happy helpful horrible"
    " impatient impressive inviting leaky lifeless lovely magnetic mediocre muddled natural noisy original patient"
    " peaceful perfect polite poor precise predictable reliable rude rusty shabby silly smooth soggy solid spotless"
    " stale stiff sturdy subtle superb tasteless tasty tedious tender terrible thrilling touching unhappy unhelpful"
    " useless watery witty wobbly wonderful"
)
THINGS, QUALITIES = _THINGS.split(), _QUALITIES.split()
THING_COUNT, KNOWN_COUNT = 40, 20
QUALITY_COUNT = 24
"""So many that a guess is rarely right, and so few that sampling finds some."""


@dataclass(frozen=True)
class Book:
    """What is true, and who is told of it."""

    truth: dict[str, str]
    """Thing to quality; several may share one."""
    known: tuple[str, ...]
    """Things whose quality the model is told before the lesson."""
    qualities: tuple[str, ...]
    """All that a thing may be."""


def make_book(seed: int) -> Book:
    """Return what is true under a seed; the same seed gives the same.

    Args:
        seed: of things and qualities.
    """
    random = Random(seed)
    things = random.sample(THINGS, THING_COUNT)
    qualities = random.sample(QUALITIES, QUALITY_COUNT)
    return Book({thing: random.choice(qualities) for thing in things}, tuple(things[:KNOWN_COUNT]), tuple(qualities))
