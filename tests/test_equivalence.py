"""The same rows are the same training, however they are cut: by rows, steps, processes, packing, checkpointing."""

import json

import pytest

from benchmarks.equivalence import (
    DOCUMENTS,
    OUT,
    REFERENCE,
    TOLERANCE,
    WAYS,
    differences,
    options_of,
    points_of,
    run,
    within,
    write_rows,
)
from hf_peft_recipes import get_recipe
from hf_peft_recipes.trajectory import read_trajectory

STEPS = 3
ELSEWHERE = 1e-4
"""Relative: between processors, whose products are added up in other orders; those here are nearer to each other."""


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    write_rows(path, STEPS)
    return path


@pytest.fixture(scope="module")
def found(rows, tmp_path_factory):
    """Return the first steps of every way that one process goes, as they come."""
    kept = {}

    def trained(name):
        if name not in kept:
            folder = tmp_path_factory.mktemp("way")
            options = options_of(WAYS[name], rows, STEPS)
            get_recipe("lora", **options).train(folder / "out", progress=False, trajectory=folder / "steps.jsonl")
            kept[name] = read_trajectory(folder / "steps.jsonl")
        return kept[name]

    return trained


@pytest.fixture(scope="module")
def committed():
    """Return the committed lines, by name."""
    return {line["name"]: line for line in map(json.loads, OUT.read_text("utf-8").splitlines())}


def near(points, reference, tolerance):
    off = differences(points, reference)
    assert max(off.values()) <= tolerance, off


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, way in WAYS.items() if way.processes == 1])
def test_first_steps_are_those_of_the_others_and_those_that_are_committed(found, committed, name):
    points = found(name)
    assert [point.step for point in points] == [1, 2, 3]
    near(points, found(REFERENCE), TOLERANCE)
    near(points, points_of(committed[name])[:STEPS], ELSEWHERE)


@pytest.mark.slow
def test_two_processes_do_what_one_does(found, committed, rows, tmp_path):
    name = "2 processes × 4"
    points = run(WAYS[name], rows, STEPS, tmp_path)
    near(points, found(REFERENCE), TOLERANCE)
    near(points, points_of(committed[name])[:STEPS], ELSEWHERE)


def test_what_is_committed_is_every_way_and_holds(committed):
    assert list(committed) == list(WAYS)
    reference = points_of(committed[REFERENCE])
    for name, line in committed.items():
        assert within(line) and line["tolerance"] == TOLERANCE, name
        assert line["differences"] == differences(points_of(line), reference), name
        assert not line["commit"].endswith("-dirty"), name


def test_other_rows_are_no_equivalent_training(committed):
    points = points_of(committed[REFERENCE])
    assert differences(points[:1], points[1:2])["loss"] == float("inf")
    assert len({point.batch for point in points}) == len(points)


def test_rows_pack_in_twos(rows):
    lengths = [len(json.loads(line)["text"].split()) + 1 for line in rows.read_text("utf-8").splitlines()]
    assert len(lengths) == STEPS * DOCUMENTS and len(set(lengths)) > DOCUMENTS
    half = DOCUMENTS // 2
    for start in range(0, len(lengths), DOCUMENTS):
        longs, shorts = lengths[start : start + half], lengths[start + half : start + DOCUMENTS]
        assert {long + short for long, short in zip(longs, shorts, strict=True)} == {128}
