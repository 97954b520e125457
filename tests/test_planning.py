"""The benchmark of what a plan costs, and what the report makes of it."""

from benchmarks.planning import Question, measure
from benchmarks.report.planning import report
from hf_peft_recipes.bench.suite import write_lines


def test_a_plan_is_asked_for_timed_and_told(tmp_path):
    lines = [measure(Question("lora", "tiny", "24GiB"), 2), measure(Question("lora", "tiny", "H100", trace=True), 1)]
    closed, traced = (line["cpu_seconds"] for line in lines)
    # A trace imports torch.
    assert len(closed) == 2 and len(traced) == 1 and min(*closed, *traced) > 0
    path = tmp_path / "planning.jsonl"
    write_lines(path, lines)
    section = report(path, "planning")
    assert section is not None
    assert f"{traced[0]:.2f} s (`lora`, tiny)" in section.block.markdown().replace("\n", " ")
    assert "| lora | tiny | H100 | trace |" in section.markdown()


def test_without_a_file_nothing_is_told(tmp_path):
    assert report(tmp_path / "planning.jsonl", "planning") is None
