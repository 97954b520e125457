"""What `evaluate` prints of labels, and of what it compares."""

from io import StringIO

from rich.console import Console

from hf_peft_recipes.evaluation import RowScore, compared, summarize
from hf_peft_recipes.report.classes import class_tables
from hf_peft_recipes.report.table import metrics_table

SECTION = {"bootstrap_samples": 200, "confidence": 0.9}


def printed(*tables):
    text = StringIO()
    for table in tables:
        Console(file=text, width=120).print(table)
    return text.getvalue()


def record(before, after, references, task="classification"):
    def measured(answers):
        scores = [RowScore(1.0, 2, a, r) for a, r in zip(answers, references, strict=True)]
        return summarize(scores, task, SECTION, 0)

    found = measured(before) if before else None
    return compared(task, "test", len(references), found, measured(after), SECTION)


def cells(line):
    return [cell.strip() for cell in line.strip("│┃").replace("┃", "│").split("│")]


def test_both_sides_and_their_difference():
    references = ["[a]", "b"] * 20
    found = record(["b"] * 40, references, references)
    text = printed(metrics_table(found, "x", ("base", "adapter")), *class_tables(found, ("base", "adapter")))
    lines = [cells(line) for line in text.splitlines()]
    assert ["", "base", "adapter", "difference"] in lines
    accuracy = next(line for line in lines if line[0] == "accuracy")
    assert accuracy[1].startswith("50.0% (") and accuracy[2] == "100.0% (100.0% – 100.0%)"
    assert accuracy[3].startswith("+50.0 pp (+")
    assert ["[a]", "0.0%", "100.0% (100.0% – 100.0%)", "100.0%", "100.0%", "20"] in lines
    assert ["", "[a]", "b", "no label"] in lines
    assert ["[a]", "0", "20", "0"] in lines and ["[a]", "20", "0", "0"] in lines


def test_one_side_alone():
    references = ["a", "b"] * 5
    found = record(None, references, references)
    assert "difference" not in found and "before" not in found["confusion"]
    text = printed(metrics_table(found, "x"), *class_tables(found))
    assert "difference" not in text
    assert text.count("by answer") == 1


def test_kinds_of_entities_have_no_confusion():
    references = ["Ann: person; Rome: place", "Bo: person"]
    found = record(["none", "Bo: person"], references, references, "entities")
    text = printed(*class_tables(found))
    assert "person" in text and "by answer" not in text
    assert not list(class_tables(record(references, references, references, "generation")))
