"""Figures that people read come from result files: the README, the report, recipe headers; and none without its provenance."""

import json
import re
import shutil
from pathlib import Path

import pytest
from conftest import ROOT

from benchmarks.report.__main__ import README, RESULTS, SECTIONS, main, read_sections, texts, write_changed
from benchmarks.report.blocks import fill, outside
from benchmarks.report.provenance import Provenance, join, read_provenance
from benchmarks.report.recipe_headers import MARK, with_receipt
from hf_peft_recipes.errors import UserError
from hf_peft_recipes.measure.facts import digest_sources
from hf_peft_recipes.plan import AGREEMENT
from hf_peft_recipes.registry import shipped_folder
from hf_peft_recipes.rehearsal import NEAR
from hf_peft_recipes.spec import strict_yaml

GOLDEN = ROOT / "tests" / "golden" / "results"
"""Lines of real runs."""
FACTS = {"hardware": ("a machine",), "versions": ("torch 2",), "commit": ("0123456789ab",), "date": ("2026-11-25",)}


@pytest.fixture
def place(tmp_path):
    """Return a folder with copies of results, README and recipes."""
    return prepare(tmp_path)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Return such a folder with everything written."""
    place = prepare(tmp_path_factory.mktemp("written"))
    assert main([*words(place), "--check"]) == 1
    assert main(words(place)) == 0
    return place


def prepare(tmp_path):
    shutil.copytree(GOLDEN, tmp_path / "results")
    shutil.copytree(shipped_folder(), tmp_path / "recipes")
    shutil.rmtree(tmp_path / "recipes" / "receipts", ignore_errors=True)
    shutil.move(tmp_path / "results" / "receipts", tmp_path / "recipes" / "receipts")
    shutil.copy(README, tmp_path / "README.md")
    return tmp_path


def words(place):
    return [word for name in ("results", "recipes") for word in (f"--{name}", str(place / name))] + [
        "--readme", str(place / "README.md"),
    ]  # fmt: skip


def write(place):
    """Write what is text: drawing takes its time."""
    results, recipes = place / "results", place / "recipes"
    write_changed(texts(read_sections(results), results, place / "README.md", recipes))


def change_line(path, change, number=1):
    """Change a line of a result file, or the whole of a JSON file."""
    whole = path.suffix == ".json"
    lines = [path.read_text()] if whole else path.read_text().splitlines()
    content = json.loads(lines[0 if whole else number])
    change(content)
    lines[0 if whole else number] = json.dumps(content)
    path.write_text("\n".join(lines) + "\n")


def test_what_is_committed_says_what_the_results_say():
    """The README, the report and the recipes' heads, made again from the committed results."""
    found = texts(read_sections(RESULTS), RESULTS, README, shipped_folder())
    assert {README, RESULTS / "REPORT.md", shipped_folder() / "methods" / "lora.yaml"} <= set(found)
    for path, text in found.items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: python -m benchmarks.report writes it"
    assert main(["--check"]) == 0


PROMISES = {"less than 5 %": AGREEMENT == 0.05, "within 15 % of the limit": NEAR == 0.85}
"""Rules of the README that look like figures, and whether the code still holds them: test_plan_agreement.py,
test_rehearsal.py."""
UNITS = (
    r"(?:\d[\d.,]*|\b(?:two|three|four|five|six|seven|eight|nine|ten|twenty|thirty)) *"
    r"(?:%|s\b|ms\b|seconds?\b|minutes?\b|hours?\b|[KMG]i?B\b|tokens/s|nats\b|times as\b)"
)


def prose(text):
    return re.sub(r"```.*?```|`[^`\n]*`", "", outside(text), flags=re.S)


def test_the_readme_has_no_figure_outside_of_its_blocks():
    text = prose(README.read_text(encoding="utf-8"))
    for promise, held in PROMISES.items():
        assert promise in text and held
        text = text.replace(promise, "")
    assert re.findall(UNITS, text) == []


@pytest.mark.parametrize("figure", ["off by 6.8 %", "in five minutes", "1 GiB more", "351 tokens/s", "0.12 nats", "3 times as fast", "40 ms", "12 s"])  # fmt: skip
def test_a_figure_in_prose_is_found(figure):
    assert re.findall(UNITS, prose(f"It was {figure}, `24 GiB`.\n```bash\nplan --gpu 24GiB\n```\n"))
    assert not re.findall(UNITS, prose(f"a\n<!-- measured: memory -->\n{figure}\n<!-- /measured -->\n"))


def test_everything_is_written_from_results(written):
    assert main([*words(written), "--check"]) == 0
    report, readme = (written / "results" / "REPORT.md").read_text(), (written / "README.md").read_text()
    measured = [json.loads(line) for line in (GOLDEN / "memory.jsonl").read_text().splitlines()]
    for line in measured:
        peak = f"{line['measured']['phases']['train']['host_bytes'] / 2**20:,.0f}"
        assert f"| {line['cell']['recipe']} | {line['cell']['shape']} | {line['cell']['length']:,} |" in report
        assert f"| {peak} |" in report
    off = [
        line["planned"]["phases"]["train"] / line["measured"]["phases"]["train"]["host_bytes"] - 1 for line in measured
    ]
    worst = max(off, key=abs)
    assert f"{sum(abs(value) <= 0.1 for value in off)} of 5 within 10 %" in readme
    assert f"{worst:+.1%}".replace("%", " %") + " at worst" in " ".join(readme.split())
    speed = json.loads((GOLDEN / "throughput.jsonl").read_text().splitlines()[0])["figures"]["tokens_per_second"]
    assert f"| {speed:,.0f} |" in report and f"| {speed:,.0f} |" in readme
    ratio = json.loads((GOLDEN / "peers_lora.json").read_text())["ratios"]["trl_best"]["tokens_per_second"]["median"]
    assert f"| trl_best | {ratio:.2f} |" in readme
    seeds = [json.loads(line) for line in (GOLDEN / "quality.jsonl").read_text().splitlines()]
    mean = sum(line["metrics"]["after"]["accuracy"] for line in seeds if line["cell"]["method"] == "qlora") / 2
    assert f"qlora (quantised) | accuracy | 50.0 % | {mean:.1%}".replace("%", " %").replace("  %", " %") in readme
    for name in ("memory", "throughput", "peers_lora", "quality"):
        assert re.search(
            rf"<!-- measured: {name} -->\n.*Measured\s+on\s+AMD\s+EPYC.*commit.*2026-11-25\.\n<!-- /measured -->", readme,
            re.S,
        )  # fmt: skip
    assert "<!-- measured: peers_qlora -->\n<!-- /measured -->" in readme


def test_a_result_that_is_gone_takes_its_figures_along(place):
    write(place)
    assert "within 10 %" in (place / "README.md").read_text()
    (place / "results" / "memory.jsonl").unlink()
    write(place)
    assert "<!-- measured: memory -->\n<!-- /measured -->" in (place / "README.md").read_text()
    assert "Memory" not in (place / "results" / "REPORT.md").read_text()


def test_plots_show_something_and_are_the_same_again(written, tmp_path):
    sections = [section for section in read_sections(written / "results").values() if section]
    assert {section.plot.file for section in sections} == {
        "memory.png", "throughput.png", "paths_lora.png", "peers_lora.png", "quality.png",
    }  # fmt: skip
    for section in sections:
        section.plot.write(tmp_path)
        drawn = written / "results" / section.plot.file
        assert drawn.read_bytes() == (tmp_path / section.plot.file).read_bytes()
        counts = count_colours(drawn)
        # Areas of several colours, and none that covers nearly everything.
        assert (counts > 50).sum() >= 4, section.plot.file
        assert counts.max() < 0.97 * counts.sum()


def count_colours(path):
    import numpy
    from matplotlib.image import imread

    pixels = (imread(path)[..., :3] * 255).astype(int)
    return numpy.unique(pixels @ [65536, 256, 1], return_counts=True)[1]


@pytest.mark.parametrize("piece", FACTS)
@pytest.mark.parametrize("value", [(), ("",)])
def test_no_provenance_without_a_piece(piece, value):
    assert Provenance("x.jsonl", **FACTS)
    with pytest.raises(UserError, match=rf"^x.jsonl, line 2: no {piece} "):
        Provenance("x.jsonl, line 2", **{**FACTS, piece: value})


@pytest.mark.parametrize(
    "file", ["memory.jsonl", "throughput.jsonl", "paths_lora.json", "peers_lora.json", "quality.jsonl"]
)
@pytest.mark.parametrize("piece", FACTS)
def test_a_result_without_a_piece_of_its_provenance_is_refused(place, capsys, file, piece):
    change_line(place / "results" / file, lambda content: content.pop(piece))
    before = (place / "README.md").read_bytes()
    assert main(words(place)) == 2
    told = capsys.readouterr().err
    where = file if file.endswith(".json") else f"{file}, line 2"
    assert told.startswith(f"error: {where}: no {piece} ") and told.count("\n") == 1
    assert (place / "README.md").read_bytes() == before and not (place / "results" / "REPORT.md").exists()


def test_a_version_or_a_name_that_is_missing_is_told(place, capsys):
    change_line(place / "results" / "memory.jsonl", lambda content: content["versions"].pop("trl"))
    assert main(words(place)) == 2
    assert "memory.jsonl, line 2: no version of trl" in capsys.readouterr().err
    shutil.copy(GOLDEN / "memory.jsonl", place / "results")
    change_line(place / "results" / "memory.jsonl", lambda content: content["hardware"]["device"].update(name=""))
    assert main(words(place)) == 2
    assert "memory.jsonl, line 2: no hardware" in capsys.readouterr().err


def test_a_receipt_without_its_provenance_is_refused(place, capsys):
    change_line(place / "recipes" / "receipts" / "lora.json", lambda content: content.update(commit=None))
    assert main(words(place)) == 2
    assert "lora.json: no commit" in capsys.readouterr().err


@pytest.mark.parametrize("file", ["memory.jsonl", "peers_lora.json", "quality.jsonl"])
def test_another_schema_is_refused_in_one_line(place, capsys, file):
    change_line(place / "results" / file, lambda content: content.update(schema_version=99))
    assert main(words(place)) == 2
    told = capsys.readouterr().err
    assert file in told and "schema version 99" in told and told.count("\n") == 1
    (place / "results" / file).write_text("[]\n")
    assert main(words(place)) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_several_commits_machines_and_days_are_all_told():
    line = json.loads((GOLDEN / "memory.jsonl").read_text().splitlines()[0])
    parts = [
        read_provenance(line | changes, "x")
        for changes in (
            {"commit": "0" * 12, "date": "2026-11-24T23:00:00+00:00"},
            {"commit": "1" * 40 + " and changes", "date": "2026-11-20T23:00:00+00:00"},
            {"commit": "2" * 12 + "-dirty", "hardware": {"device": "another machine, 3 GiB"}},
        )
    ]
    told = join("x.jsonl", parts).phrase()
    assert "AMD EPYC, 2 cores, 24 GiB, 1 thread and another machine, 3 GiB; torch" in told
    assert f"commits {'0' * 12}, {'1' * 12}-dirty, {'2' * 12}-dirty; 2026-11-20 to 2026-11-25" in told


def test_a_block_that_was_changed_by_hand_is_found(written, tmp_path, capsys):
    place = shutil.copytree(written, tmp_path / "copy")
    readme = place / "README.md"
    right = readme.read_text()
    readme.write_text(right.replace("of 5 within 10 %", "of 6 within 10 %"))
    assert readme.read_text() != right
    assert main([*words(place), "--check"]) == 1
    told = capsys.readouterr().err
    assert told.startswith(str(readme)) and told.count("\n") == 1
    assert readme.read_text() != right
    write(place)
    assert readme.read_text() == right
    (place / "results" / "memory.png").unlink()
    assert main([*words(place), "--check"]) == 1
    assert "memory.png" in capsys.readouterr().err


def test_a_block_that_nobody_fills_is_refused(place, capsys):
    (place / "README.md").write_text("<!-- measured: memori -->\n<!-- /measured -->\n")
    assert main(words(place)) == 2
    assert "'memori'; did you mean 'memory'?" in capsys.readouterr().err
    for broken in (
        "<!-- measured: a -->\n",
        "<!-- /measured -->\n",
        "<!-- measured: a -->\n" * 2 + "<!-- /measured -->\n",
    ):
        with pytest.raises(UserError, match="README"):
            fill(broken, {"a": "x"}, "README.md")
    assert fill("<!-- measured: a -->\nold\n<!-- /measured -->\n", {"a": "new"}, "") == (
        "<!-- measured: a -->\nnew\n<!-- /measured -->\n"
    )


def test_contenders_that_did_not_run_are_told_with_their_reason(place):
    def change(content):
        content["contenders"] |= {"unsloth": content["contenders"]["trl_best"], "axolotl": {"unmatched": "other rows"}}
        content["check"]["not_checked"] = {"axolotl": "other rows"}
        content["cells"] |= {
            "check/unsloth": {"status": "unavailable", "reason": "it wants a GPU"},
            "turn 1/axolotl": {"status": "failed", "reason": "line 1\nline 2"},
        }

    change_line(place / "results" / "peers_lora.json", change)
    write(place)
    told = " ".join((place / "README.md").read_text().split())
    assert "Without a timed run: unsloth (unavailable: it wants a GPU); axolotl (failed: line 1 line 2)." in told
    report = (place / "results" / "REPORT.md").read_text()
    assert "| unsloth | - | - | - | - | - | not checked |" in report
    assert "| axolotl | - | - | - | - | - | no: other rows |" in report


def test_a_plan_with_a_timed_step_is_held_to_what_came(place):
    change_line(
        place / "results" / "throughput.jsonl",
        lambda line: line["planned"].update(timed_tokens_per_second=1.03 * line["figures"]["tokens_per_second"]),
    )
    write(place)
    told = " ".join((place / "README.md").read_text().split())
    assert "says them before: 1 of 1 within 5 %, 3.0 % off on average, +3.0 % at worst" in told
    assert "timed plan tokens/s" in (place / "results" / "REPORT.md").read_text()


def test_a_comparison_that_is_not_of_the_same_work_has_no_figures(place):
    def change(content):
        content["check"]["verdicts"]["trl_best"]["mismatches"] = ["losses 0.5"]
        content["check"]["mismatches"] = ["trl_best: losses 0.5"]
        content["cells"] = {name: cell for name, cell in content["cells"].items() if name.startswith("check")}
        del content["ratios"], content["ceiling"]

    change_line(place / "results" / "peers_lora.json", change)
    write(place)
    assert "was not timed beside others (trl_best: losses 0.5)" in (place / "README.md").read_text()
    assert read_sections(place / "results")["peers_lora"].plot is None


@pytest.mark.parametrize("file", ["memory.jsonl", "throughput.jsonl", "quality.jsonl"])
def test_a_cell_that_failed_has_a_row_and_no_figures(place, file):
    def change(content):
        for key in ("measured", "figures", "metrics", "forgetting", "trained_bytes", "quantized"):
            content.pop(key, None)
        content |= {"status": "oom", "error": "out of memory"}

    change_line(place / "results" / file, change)
    write(place)
    report = (place / "results" / "REPORT.md").read_text()
    assert "oom" in report or "| 1 of 2 |" in report


def test_the_plan_of_a_gpu_has_a_table_where_it_was_measured(place):
    line = json.loads((GOLDEN / "memory.jsonl").read_text().splitlines()[0])
    line |= {"compared": {"planned": 90 * 2**20, "allocated": 100 * 2**20, "off": -0.1}, "dry_run": False}
    path = place / "results" / "gpu" / "plan.jsonl"
    path.parent.mkdir()
    path.write_text(json.dumps(line) + "\n")
    section = read_sections(place / "results")["gpu_plan"]
    assert "| lora | s | 128 | off | full | 90 | 100 | -10.0 % |" in section.markdown()
    path.write_text(json.dumps(line | {"dry_run": True}) + "\n")
    assert read_sections(place / "results")["gpu_plan"] is None


def test_receipts_stand_below_the_run_command(place):
    recipe = place / "recipes" / "methods" / "lora.yaml"
    bare = with_receipt(recipe.read_text(), [])
    write(place)
    text = recipe.read_text()
    lines = text.splitlines()
    told = [line for line in lines if line.startswith(MARK)]
    assert lines[0] == bare.splitlines()[0] and lines[1 : 1 + len(told)] == told
    assert all(len(line) <= 120 for line in lines)
    said = " ".join(line.removeprefix(MARK) for line in told)
    receipt = json.loads((place / "recipes" / "receipts" / "lora.json").read_text())
    assert said.startswith(
        f"loss {receipt['losses'][0]:.3f} to {receipt['losses'][-1]:.3f} in 12 steps on the embedded demo, "
        f"held-out accuracy 50.0 % to 95.5 %, {receipt['peak_memory_bytes']['train'] / 2**20:.0f} MiB"
    )
    assert said.endswith(f"commit {receipt['commit']}; 2026-11-25")
    assert strict_yaml.load(text, "a") == strict_yaml.load(bare, "b")
    # Another receipt comes in its place, and none leaves the file as it was.
    change_line(place / "recipes" / "receipts" / "lora.json", lambda content: content.update(commit="f" * 12))
    write(place)
    assert len(recipe.read_text().splitlines()) == len(lines) and "f" * 12 in recipe.read_text()
    (place / "recipes" / "receipts" / "lora.json").unlink()
    write(place)
    assert recipe.read_text() == bare


def test_a_receipt_of_no_recipe_is_refused(place, capsys):
    shutil.copy(place / "recipes" / "receipts" / "lora.json", place / "recipes" / "receipts" / "lorra.json")
    assert main(words(place)) == 2
    assert "lorra.json: there is no recipe of that name" in capsys.readouterr().err


def test_what_was_measured_outlives_a_receipt_in_the_head(tmp_path: Path):
    """Or writing what a run left would make its figures those of other code."""
    package, recipes = tmp_path / "package", tmp_path / "recipes"
    package.mkdir(), recipes.mkdir()
    source, recipe = package / "a.py", recipes / "a.yaml"
    source.write_text("# a reason\nx = 1\n")
    recipe.write_text("# run it\nsummary: |\n  # this is text\n  of two lines\n")
    begun = digest_sources(package, recipes)
    recipe.write_text("# run it\n# receipt: loss 2 to 1\nsummary: |\n  # this is text\n  of two lines\n")
    assert digest_sources(package, recipes) == begun
    recipe.write_text("# run it\nsummary: |\n  # this is another text\n  of two lines\n")
    assert digest_sources(package, recipes) != begun
    recipe.write_text("# run it\nsummary: |\n  # this is text\n  of two lines\n")
    source.write_text("# another reason\nx = 1\n")
    assert digest_sources(package, recipes) != begun


def test_every_block_of_the_readme_has_a_section():
    """And the README has a block for every section that it can have figures of."""
    named = set(re.findall(r"<!-- measured: (\S+) -->", README.read_text(encoding="utf-8")))
    assert named <= set(SECTIONS)
    assert named >= {"memory", "throughput", "peers_lora", "peers_qlora", "quality", "quality_real"}
