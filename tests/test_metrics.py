"""Every family of metrics against the library that it is named after, and the intervals of differences."""

import math
import random

import numpy
import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF
from seqeval.metrics import classification_report
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

from hf_peft_recipes.data.entities import entity_text, read_entities
from hf_peft_recipes.evaluation import RowScore, difference, summarize
from hf_peft_recipes.evaluation.texts import Words
from hf_peft_recipes.metric_facts import DEFINITIONS, LOWER_IS_BETTER, SHARES, TASK_METRICS

SECTION = {"bootstrap_samples": 200, "confidence": 0.95}
WORDS = ["the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "table", "quickly", "and", "then", "slept"]


def rows(answers, references, **fields):
    return [RowScore(1.0, 2, a, r, **fields) for a, r in zip(answers, references, strict=True)]


def texts(seed, number=20):
    draw = random.Random(seed)
    references = [" ".join(draw.choices(WORDS, k=draw.randint(4, 15))) + "." for _ in range(number)]
    answers = [" ".join(word for word in text.split() if draw.random() < 0.8) for text in references]
    return [*answers[:-1], ""], references


@pytest.mark.parametrize("seed", range(3))
def test_labels_are_scored_as_scikit_learn_does(seed):
    draw = random.Random(seed)
    labels = ["a", "b", "c"]
    references = [draw.choice(labels) for _ in range(60)] + labels
    answers = [draw.choice([*labels, "none of them", ""]) for _ in references]
    found = summarize(rows(answers, references), "classification", SECTION, 0)
    kept = {"labels": labels, "zero_division": 0}
    precision, recall, f1, _ = precision_recall_fscore_support(references, answers, average="macro", **kept)
    expected = {"macro_precision": precision, "macro_recall": recall, "macro_f1": f1}
    expected["accuracy"] = accuracy_score(references, answers)
    assert {name: found.values[name] for name in expected} == pytest.approx(expected)
    of_each = zip(*precision_recall_fscore_support(references, answers, **kept), strict=True)
    for label, (precision, recall, f1, support) in zip(labels, of_each, strict=True):
        told = found.classes[label]
        assert [told["precision"], told["recall"], told["f1"]] == pytest.approx([precision, recall, f1])
        assert told["support"] == support
        low, high = told["intervals"]["f1"]
        assert low < told["f1"] < high
    known = confusion_matrix(
        references, [answer if answer in labels else "~" for answer in answers], labels=[*labels, "~"]
    )
    assert found.confusion == {"labels": labels, "counts": known[:-1].tolist()}


def test_a_label_that_no_answer_names():
    found = summarize(rows(["Yes.", "yes", "maybe"], ["yes", "no", "no"]), "classification", SECTION, 0)
    assert found.classes["no"]["f1"] == 0.0
    assert found.confusion == {"labels": ["no", "yes"], "counts": [[0, 1, 1], [0, 1, 0]]}


def test_generated_texts_are_scored_as_their_libraries_do():
    answers, references = texts(0)
    found = summarize(rows(answers, references), "generation", SECTION, 0)
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
    expected = {
        kind: numpy.mean([scorer.score(r, a)[kind].fmeasure for a, r in zip(answers, references, strict=True)])
        for kind in ("rouge1", "rouge2", "rougeL")
    }
    expected["bleu"] = BLEU().corpus_score(answers, [references]).score
    expected["chrf"] = CHRF().corpus_score(answers, [references]).score
    assert {name: found.values[name] for name in expected} == pytest.approx(expected)
    for name, value in expected.items():
        low, high = found.intervals[name]
        assert low < value < high
    assert found.signatures["bleu"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp")


def test_a_bootstrap_sample_is_the_corpus_of_its_rows():
    answers, references = texts(1, 8)
    found = summarize(rows(answers, references), "generation", {**SECTION, "bootstrap_samples": 3}, 5)
    drawn = numpy.random.default_rng(5).integers(0, 8, size=(3, 8))
    for sample, chosen in enumerate(drawn):
        corpus = [answers[row] for row in chosen], [[references[row] for row in chosen]]
        assert found.draws["bleu"][sample] == pytest.approx(BLEU().corpus_score(*corpus).score)
        assert found.draws["chrf"][sample] == pytest.approx(CHRF().corpus_score(*corpus).score)


def test_several_references():
    streams = [["the cat sat on the mat", "a dog ran"], ["on the mat sat a cat", None]]
    scores = [
        RowScore(1.0, 2, "a cat sat on the mat", streams[0][0], alternatives=(streams[1][0],)),
        RowScore(1.0, 2, "a dog slept", streams[0][1]),
    ]
    found = summarize(scores, "generation", SECTION, 0)
    answers = [score.answer for score in scores]
    assert found.values["bleu"] == pytest.approx(BLEU().corpus_score(answers, streams).score)
    assert found.values["chrf"] == pytest.approx(CHRF().corpus_score(answers, streams).score)
    best = RougeScorer(["rouge1"]).score_multi([stream[0] for stream in streams], answers[0])["rouge1"].fmeasure
    assert found.values["rouge1"] == pytest.approx((best + 2 / 3) / 2)
    either = [RowScore(1.0, 2, "UK", "United Kingdom", alternatives=("UK",))]
    assert summarize(either, "exact_match", SECTION, 0).values["exact_match"] == 1.0


@pytest.mark.parametrize("answers", [["", ""], [None, " "]])
def test_answers_of_nothing(answers):
    for task in ("generation", "exact_match", "numeric", "entities", "classification"):
        found = summarize(rows(answers, ["Ann: person", "#### 5"]), task, SECTION, 0)
        assert all(value == 0.0 for name, value in found.values.items() if name not in ("loss", "perplexity")), task


def test_words_of_other_scripts_count():
    same = ["Кошка сидит на ковре.", "猫が座っている", "बिल्ली बैठी है", "แมวนั่ง", "고양이가 앉았다"]
    other = ["Собака бежит домой.", "犬は走った", "कुत्ता दौड़ा", "สุนัขวิ่ง", "개가 달렸다"]
    found = summarize(rows(same, same), "generation", SECTION, 0).values
    assert found["rouge1"] == 1.0
    assert found["chrf"] == pytest.approx(100)
    assert summarize(rows(other, same), "generation", SECTION, 0).values["rouge1"] < 0.3
    assert Words().tokenize("हिन्दी भाषा, 猫だ_x") == ["हिन्दी", "भाषा", "猫", "だ", "x"]
    chinese = summarize(rows(["猫坐在垫子上"], ["猫坐在垫子上面"]), "generation", SECTION, 0)
    assert chinese.values["bleu"] > 50
    assert "tok:char" in chinese.signatures["bleu"]


TAGGED = [
    ("O B-PER I-PER O B-LOC", "O B-PER I-PER O B-LOC"),
    ("B-ORG O O B-LOC O", "B-ORG I-ORG O B-LOC O"),
    ("O O O O B-PER", "O B-LOC O O O"),
    ("O O", "O O"),
]


def test_tags_are_scored_as_seqeval_does():
    answers, references = ([row[side].split() for row in TAGGED] for side in (0, 1))
    scores = [
        RowScore(0.0, 1, tags=tuple(a), reference_tags=tuple(r)) for a, r in zip(answers, references, strict=True)
    ]
    found = summarize(scores, "entities", SECTION, 0)
    report = classification_report(references, answers, output_dict=True, zero_division=0)
    micro = report["micro avg"]
    expected = {
        "entity_f1": micro["f1-score"],
        "entity_precision": micro["precision"],
        "entity_recall": micro["recall"],
    }
    assert {name: found.values[name] for name in expected} == pytest.approx(expected)
    for kind in ("LOC", "ORG", "PER"):
        told = found.classes[kind]
        assert told["f1"] == pytest.approx(report[kind]["f1-score"])
        assert told["support"] == report[kind]["support"]


def test_bilou_tags_are_entities_too():
    tags = ("U-PER", "O", "B-LOC", "I-LOC", "L-LOC", "B-LOC", "L-LOC")
    found = summarize([RowScore(0.0, 1, tags=tags, reference_tags=tags)], "entities", SECTION, 0)
    assert {kind: told["support"] for kind, told in found.classes.items()} == {"LOC": 2, "PER": 1}


def test_tags_of_another_number_are_a_fault():
    with pytest.raises(ValueError, match="1 tags for 2 tokens"):
        summarize([RowScore(0.0, 1, tags=("O",), reference_tags=("O", "O"))], "entities", SECTION, 0)


def test_entities_that_are_written_out():
    references = ["Ann: person; New York: place; Ann: person", "none", "Bo: person"]
    answers = ["Ann: person; New York: person", "none", "He is in Rome."]
    found = summarize(rows(answers, references), "entities", SECTION, 0)
    # Right: Ann once. Answered: two, and one sentence. There are four.
    assert found.values["entity_precision"] == pytest.approx(1 / 3)
    assert found.values["entity_recall"] == pytest.approx(1 / 4)
    assert found.values["entity_f1"] == pytest.approx(2 / 7)
    assert found.classes["person"]["recall"] == pytest.approx(1 / 3)
    assert found.classes["place"]["f1"] == 0.0


@pytest.mark.parametrize(
    ("tokens", "tags"),
    [
        (["Ann", "saw", "Rome"], ["B-PER", "O", "B-LOC"]),
        (["a", ";", "b"], ["B-X", "I-X", "O"]),
        (["12", ":", "30"], ["B-TIME", "I-TIME", "I-TIME"]),
        (["x"], ["O"]),
    ],
)
def test_entities_are_read_as_they_were_written(tokens, tags):
    text = entity_text(tokens, tags)
    assert "; ".join(f"{words}: {kind}" for words, kind in read_entities(text)) in (text, "")
    assert all(kind for _, kind in read_entities(text))


def test_a_difference_is_of_pairs():
    draw = random.Random(0)
    before = [draw.random() < 0.5 for _ in range(100)]
    # Only wrong rows may change: beside the spread of both, that of the difference is small.
    after = [right or draw.random() < 0.2 for right in before]
    found = [
        summarize(rows(["x" if right else "y" for right in side], ["x"] * 100), "exact_match", SECTION, 1)
        for side in (before, after)
    ]
    values, intervals = difference(*found, 0.95)
    gained = sum(after) - sum(before)
    assert values["exact_match"] == pytest.approx(gained / 100)
    low, high = intervals["exact_match"]
    # Of a share p of n rows the normal interval is 1.96 * sqrt(p * (1 - p) / n) to either side.
    half = 1.96 * (gained / 100 * (1 - gained / 100) / 100) ** 0.5
    assert [low, high] == pytest.approx([gained / 100 - half, gained / 100 + half], abs=0.03)
    apart = [side.intervals["exact_match"] for side in found]
    assert high - low < 0.8 * math.hypot(*(top - bottom for bottom, top in apart))


def test_metrics_are_explained():
    answers, references = texts(2, 5)
    tasks = {
        name
        for task in ("classification", "exact_match", "numeric", "entities", "generation")
        for name in summarize(rows(answers, references), task, SECTION, 0).values
    }
    assert tasks <= set(DEFINITIONS)
    # A reward is in the range that its function gives it.
    assert set(TASK_METRICS) - {"reward"} <= set(SHARES)
    assert not set(LOWER_IS_BETTER) & set(SHARES)
