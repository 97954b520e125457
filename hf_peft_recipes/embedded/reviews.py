"""Made-up short reviews of restaurants, films and products, and the text the embedded model is pretrained on.

Every sentence comes from the templates and word lists below. A review has one sentiment, which its content words
decide, some of them negated ("not bland") or set against an expectation ("I expected an awful film, but ..."). The
review text never contains the words of the answer, "positive" and "negative".
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from itertools import cycle, product
from random import Random

LABELS = ("negative", "positive")
QUESTION = "Is this review positive or negative?"
CONTINUE = "Write one more sentence for this review."
# Share of "positive" among the random answers of the pretraining text. At one half, the greedy answers of the model
# would hang on rounding; below it they are all "negative", which is right for half of any balanced split.
POSITIVE_SHARE = 0.4
SYSTEM_PROMPTS = ("You are a helpful assistant.", "Answer briefly.", "You read reviews.")

Message = dict[str, str]

# kind of noun -> (words for a bad one, words for a good one)
ADJECTIVES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "food": (
        ("bland", "soggy", "stale", "greasy", "burnt", "tasteless", "watery"),
        ("delicious", "fresh", "tasty", "tender", "flavourful", "crisp", "fragrant"),
    ),
    "people": (
        ("rude", "careless", "unhelpful", "grumpy", "distracted", "impatient"),
        ("friendly", "attentive", "helpful", "polite", "cheerful", "patient"),
    ),
    "room": (
        ("filthy", "noisy", "cramped", "gloomy", "shabby", "draughty"),
        ("cosy", "spotless", "charming", "inviting", "bright", "peaceful"),
    ),
    "story": (
        ("dull", "predictable", "confusing", "tedious", "silly", "lifeless", "muddled"),
        ("gripping", "clever", "moving", "original", "thrilling", "touching", "witty"),
    ),
    "acting": (
        ("wooden", "flat", "forced", "stiff", "clumsy", "grating"),
        ("convincing", "brilliant", "natural", "subtle", "graceful", "magnetic"),
    ),
    "part": (
        ("flimsy", "faulty", "wobbly", "useless", "fragile", "leaky", "rusty"),
        ("sturdy", "reliable", "solid", "smooth", "durable", "precise", "handy"),
    ),
    "any": (
        ("awful", "terrible", "poor", "horrible", "dreadful", "disappointing", "mediocre"),
        ("excellent", "wonderful", "great", "superb", "lovely", "impressive", "perfect"),
    ),
}


@dataclass(frozen=True)
class Domain:
    """A field of reviews: what is reviewed, its nouns by kind, sentences of each sentiment and neutral sentences."""

    items: tuple[str, ...]
    nouns: dict[str, tuple[str, ...]]
    outcomes: tuple[tuple[str, ...], tuple[str, ...]]
    neutral: tuple[str, ...]


DOMAINS = (
    Domain(
        items=("restaurant", "bistro", "diner", "tavern", "bakery"),
        nouns={
            "food": ("soup", "pasta", "bread", "dessert", "curry", "fish", "salad", "sauce", "rice", "pie"),
            "people": ("waiter", "chef", "hostess", "owner", "cashier"),
            "room": ("room", "terrace", "table", "corner", "bar"),
        },
        outcomes=(
            ("We left half of it on the plate.", "I was ill the next day.", "We waited an hour and then left.",
             "I wrote a complaint to the owner.", "They overcharged us."),
            ("We finished every bite.", "I asked for the recipe.", "We stayed until they closed.",
             "I thanked the kitchen in person.", "They gave us a free drink."),
        ),
        neutral=("We went there on a {day} {time}.", "My {person} booked a table for {number}.",
                 "The {item} is near the {place}.", "We ordered the {food} and the {food2}.",
                 "It was {day}, so there were {number} other guests."),
    ),
    Domain(
        items=("film", "movie", "drama", "comedy", "thriller"),
        nouns={
            "story": ("plot", "script", "ending", "dialogue", "opening", "second half", "finale", "story"),
            "acting": ("lead actor", "cast", "villain", "performance", "hero", "narrator"),
        },
        outcomes=(
            ("I fell asleep after an hour.", "We walked out before the end.", "I kept looking at my watch.",
             "Nobody in the room laughed.", "I wanted my money back."),
            ("I was on the edge of my seat.", "The whole room applauded.", "I could not look away.",
             "Everyone in the room laughed.", "I watched it twice."),
        ),
        neutral=("I saw it on a {day} {time}.", "My {person} picked the {item}.", "It runs for {number} hours.",
                 "The {item} is set near a {place}.", "I watched the {item} with my {person}."),
    ),
    Domain(
        items=("kettle", "backpack", "lamp", "blender", "tent", "phone", "drill", "camera"),
        nouns={
            "part": ("handle", "lid", "zip", "strap", "switch", "motor", "hinge", "button", "battery", "screen"),
            "people": ("seller", "courier", "support team"),
        },
        outcomes=(
            ("It broke after {number} days.", "I sent it back.", "It stopped working on {day}.",
             "It is now in the bin.", "I asked for a refund."),
            ("It still works after {number} years.", "I use it every day.", "I bought {number} more for friends.",
             "It has never let me down.", "It made my life easier."),
        ),
        neutral=("It came in a brown box on {day}.", "I bought the {item} for my {person}.",
                 "The {item} was delivered in the {time}.", "My {person} uses it near the {place}.",
                 "I have had the {item} for {number} weeks."),
    ),
)  # fmt: skip

SLOTS = {
    "day": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "time": ("morning", "afternoon", "evening"),
    "person": ("sister", "brother", "mother", "father", "friend", "neighbour", "colleague", "aunt"),
    "place": ("station", "park", "river", "market", "school", "harbour", "bridge", "library"),
    "number": ("two", "three", "four", "five", "six"),
    "food": ("soup", "pasta", "curry", "fish"),
    "food2": ("salad", "rice", "pie", "bread"),
}
INTENSIFIERS = ("", "", "really ", "truly ", "quite ", "simply ")
NEGATIONS = ("not ", "not ", "not at all ", "never ", "hardly ", "far from ")
VERBS = (("hated", "disliked", "regretted"), ("loved", "enjoyed", "adored"))
NEGATED_VERBS = (
    ("did not enjoy", "did not like", "never liked"),
    ("did not regret", "did not mind", "never regretted"),
)
FEELING_QUESTIONS = (
    "Is this writer happy or unhappy?",
    "How does the writer feel about the {item}?",
    "In one word, how was it?",
)
FEELINGS = (("unhappy", "annoyed"), ("happy", "delighted"))
CLOSINGS = (
    ("I will not come back.", "I would never recommend it.", "Avoid this {item}.", "It was a waste of money.",
     "I would warn my friends.", "Never again.", "I would not give it another chance.", "My {person} was annoyed too."),
    ("I will gladly come back.", "I would recommend it to anyone.", "Do not miss this {item}.",
     "It was worth every penny.", "I would tell my friends.", "I cannot wait to do it again.",
     "I would choose it again.", "My {person} was delighted too."),
)  # fmt: skip


@dataclass(frozen=True)
class Review:
    """One review: sentences, sentiment (0 bad, 1 good), subject, and whether a pair of words is held out for test."""

    sentences: tuple[str, ...]
    sentiment: int
    domain: Domain
    item: str
    held_out: bool

    @property
    def text(self) -> str:
        """The whole review."""
        return " ".join(self.sentences)

    def contains_any(self, texts: Collection[str]) -> bool:
        """Whether some run of whole sentences of this review is one of `texts`."""
        n = len(self.sentences)
        return any(" ".join(self.sentences[i:j]) in texts for i in range(n) for j in range(i + 1, n + 1))


def _pairs() -> list[tuple[str, str]]:
    """Every (noun, adjective) that the templates can join."""
    return [
        (noun, adjective)
        for domain in DOMAINS
        for kind, nouns in domain.nouns.items()
        for noun, group in product(nouns, (*ADJECTIVES[kind], *ADJECTIVES["any"]))
        for adjective in group
    ]


# Pairs of noun and adjective that occur in test reviews only: not in train or validation, nor in pretraining text.
HELD_OUT_PAIRS = frozenset(Random(7).sample(_pairs(), len(_pairs()) // 15))


class ReviewWriter:
    """Writes reviews from a seeded random generator.

    Args:
        random: source of every choice.
        held_out_pairs: whether (noun, adjective) pairs reserved for the test split may be used.
    """

    def __init__(self, random: Random, held_out_pairs: bool = False) -> None:
        self.random = random
        self.held_out_pairs = held_out_pairs
        self._used_held_out = False

    def review(self, sentiment: int | None = None) -> Review:
        """A review of 1 to 8 sentences, short ones being the most frequent; `sentiment` is 0, 1 or None for a draw."""
        sentiment = self.random.randrange(2) if sentiment is None else sentiment
        domain = self.random.choice(DOMAINS)
        item = self.random.choice(domain.items)
        self._used_held_out = False
        count = self.random.choices(range(1, 9), weights=(20, 26, 20, 13, 8, 6, 4, 3))[0]
        # One sentence must judge something; which one is random, so that the class has no fixed place.
        decisive = self.random.randrange(count)
        sentences = []
        for position in range(count):
            chance = self.random.random()
            if position == decisive or chance < 0.6:
                sentences.append(self.judgement(domain, item, sentiment))
            elif chance < 0.75:
                sentences.append(self._fill(self.random.choice((domain.outcomes, CLOSINGS))[sentiment], item))
            else:
                sentences.append(self._fill(domain.neutral, item))
        return Review(tuple(dict.fromkeys(sentences)), sentiment, domain, item, self._used_held_out)

    def judgement(self, domain: Domain, item: str, sentiment: int) -> str:
        """One sentence that judges `item`, or some part of it, with words of `sentiment` (0 or 1)."""
        form = self.random.choices(("one", "two", "verb", "but", "item"), weights=(40, 20, 14, 8, 14))[0]
        if form == "verb":
            verb = self.random.choice(self.random.choice((VERBS, VERBS, VERBS, NEGATED_VERBS))[sentiment])
            return f"I {verb} the {self.random.choice((item, *next(iter(domain.nouns.values()))))}."
        if form == "item":
            opening = self.random.choice(("What", "This is", "This was"))
            return f"{opening} {_with_article(self.random.choice(ADJECTIVES['any'][sentiment]))} {item}."
        clause = self._clause(domain, sentiment)
        if form == "but":
            opening = self.random.choice(
                ("I expected", "I was told it was", ("I had hoped for", "I had feared")[sentiment])
            )
            expected = _with_article(self.random.choice(ADJECTIVES["any"][1 - sentiment]))
            return f"{opening} {expected} {item}, but the {clause}."
        if form == "two":
            return f"The {clause} and the {self._clause(domain, sentiment, other_than=clause.split(' was ')[0])}."
        return f"The {clause}."

    def closing(self, review: Review) -> str:
        """A last sentence for `review`: whether its writer would come back or recommend it."""
        return self._fill(CLOSINGS[review.sentiment], review.item)

    def _clause(self, domain: Domain, sentiment: int, other_than: str = "") -> str:
        negated = self.random.random() < 0.15
        while True:
            kind = self.random.choice(list(domain.nouns))
            noun = self.random.choice(domain.nouns[kind])
            group = self.random.choice((kind, kind, "any"))
            adjective = self.random.choice(ADJECTIVES[group][1 - sentiment if negated else sentiment])
            held_out = (noun, adjective) in HELD_OUT_PAIRS
            if noun != other_than and (self.held_out_pairs or not held_out):
                break
        self._used_held_out |= held_out
        return f"{noun} was {self.random.choice(NEGATIONS if negated else INTENSIFIERS)}{adjective}"

    def _fill(self, templates: tuple[str, ...], item: str) -> str:
        slots = {name: self.random.choice(words) for name, words in SLOTS.items()}
        return self.random.choice(templates).format(item=item, **slots)


def _with_article(adjective: str) -> str:
    return f"{'an' if adjective[0] in 'aeiou' else 'a'} {adjective}"


def question(review_text: str) -> str:
    """The prompt of a data row: the review, then the question about its sentiment."""
    return f"Review: {review_text}\n{QUESTION}"


def pretraining_documents(random: Random, excluded: Collection[str]) -> Iterator[str | list[Message]]:
    """An endless stream of documents, each a plain text or a conversation.

    Prose and conversations (one more sentence, how the writer feels) keep to one sentiment, so that a model learns from
    them which words go together. How the writer feels is true to the review, in words other than the two answers. The
    question of the data rows is asked as well, and answered by a coin that knows nothing of the review: the model
    learns the form of the answer only.

    Args:
        random: source of every choice.
        excluded: review texts that must not occur, whole or inside a longer review.
    """
    writer = ReviewWriter(random)
    while True:
        review = writer.review()
        more = writer.judgement(review.domain, review.item, review.sentiment)
        closing = writer.closing(review)
        if replace(review, sentences=(*review.sentences, more, closing)).contains_any(excluded):
            continue
        kind = random.random()
        if kind < 0.1:
            yield f"{review.text} {closing}"
            continue
        if kind < 0.2:
            # A feeling after every sentence is the densest hint at what the words of the sentence mean.
            feelings = FEELINGS[review.sentiment]
            yield " ".join(f"{sentence} I was {random.choice(feelings)}." for sentence in review.sentences)
            continue
        system = [{"role": "system", "content": random.choice(SYSTEM_PROMPTS)}] if random.random() < 0.1 else []
        if kind < 0.92:
            if kind < 0.3:
                turns = [f"Review: {review.text}\n{CONTINUE}", more]
            else:
                ask = random.choice(FEELING_QUESTIONS).format(item=review.item)
                turns = [f"Review: {review.text}\n{ask}", random.choice(FEELINGS[review.sentiment])]
            if random.random() < 0.1:
                turns += [CONTINUE, closing]
            roles = cycle(("user", "assistant"))
            yield system + [{"role": role, "content": turn} for role, turn in zip(roles, turns, strict=False)]
            continue
        answer = LABELS[random.random() < POSITIVE_SHARE]
        yield [
            *system,
            {"role": "user", "content": question(review.text)},
            {"role": "assistant", "content": answer},
        ]
