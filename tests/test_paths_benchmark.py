"""The benchmark of the faster paths, on a tiny shape: every side does the same work, and what it tells adds up."""

import json
import sys

import pytest

from benchmarks.paths import ALL, UPSTREAM, main, sides
from hf_peft_recipes.speed import PATHS


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """Return what the benchmark writes."""
    out = tmp_path_factory.mktemp("paths") / "paths.json"
    words = [
        "--turns",
        "2",
        "--layers",
        "2",
        "--hidden",
        "64",
        "--vocabulary",
        "1300",
        "--rows",
        "2",
        "--length",
        "128",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["paths", *words, "--out", str(out)])
        main()
    return json.loads(out.read_text())


def test_every_path_is_left_out_once():
    table = sides()
    assert table[UPSTREAM] == [] and table[ALL] == list(PATHS)
    assert [set(PATHS) - set(table[f"all but {name}"]) for name in PATHS] == [{name} for name in PATHS]


def test_every_side_takes_its_steps_on_the_same_batch(result):
    assert list(result["seconds"]) == list(sides()) and all(len(turns) == 2 for turns in result["seconds"].values())
    assert 128 < result["tokens"][0] <= 256 and 0 < result["supervised_tokens"][0] < result["tokens"][0]
    assert result["tokens"][0] < result["squared_lengths"][0] < 2 * 128**2
    # Each side's first step comes a step after the one before, at a learning rate at which little changes.
    losses = list(result["losses"].values())
    assert max(losses) - min(losses) < 0.1 * losses[0]


def test_ratios_and_shares_follow_from_the_seconds(result):
    ours, upstream = (result["seconds"][side] for side in (ALL, UPSTREAM))
    ratios = sorted(theirs / mine for theirs, mine in zip(upstream, ours, strict=True))
    assert [result["time_to_all_paths"][UPSTREAM][key] for key in ("low", "high")] == pytest.approx(ratios)
    assert result["time_to_all_paths"][ALL] == {"median": 1, "low": 1, "high": 1}
    assert all(0 < found["median"] < 1 for found in result["share_of_product_rate"].values())


def test_each_path_that_is_left_out_keeps_more_for_the_way_back(result):
    kept = result["kept_bytes"]
    assert kept[ALL] < 0.6 * kept[UPSTREAM]
    # Blocks take their layers along, and what turns positions keeps nothing either way.
    for name in ("loss_head", "lora_linear", "gated_mlp", "rms_norm"):
        assert kept[ALL] < kept[f"all but {name}"] < kept[UPSTREAM], name


def test_the_profiles_are_of_different_code(result):
    names = {side: {one["name"] for one in result["profiles"][side]["top"]} for side in (ALL, UPSTREAM)}
    assert any("LoraLinear" in name for name in names[ALL]) and not any(
        "LoraLinear" in name for name in names[UPSTREAM]
    )
    for profile in result["profiles"].values():
        assert sum(profile["shares"].values()) == pytest.approx(1)
