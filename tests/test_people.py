"""People who judge: what they get, what is on disk when something ends in the middle, and the terminal."""

import resource
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from people_samples import HOSTILE, Terminal, answers, begin_round, said

from hf_peft_recipes.errors import UserError
from hf_peft_recipes.feedback.asking import Feedback
from hf_peft_recipes.feedback.journal import Journal
from hf_peft_recipes.feedback.people.judging import check_name
from hf_peft_recipes.feedback.people.leases import Leases
from hf_peft_recipes.feedback.people.queue import Queue
from hf_peft_recipes.feedback.people.target import open_target
from hf_peft_recipes.feedback.people.terminal import visible
from hf_peft_recipes.feedback.record import FeedbackRecord, Origin, as_turns
from hf_peft_recipes.feedback.verdicts import latest, record_id, sample_id

YES, NO = Feedback(label=True), Feedback(label=False)


def queue_of(path, **chosen):
    target = open_target(path)
    leases = Leases(target.journal.with_name("leases"), **chosen) if chosen else None
    return Queue(target, leases)


def test_the_last_record_of_a_sample_counts():
    def record(id, name, label):
        return FeedbackRecord(as_turns("p"), "c", Origin(name), label=label, id=id)

    records = [
        record(record_id("s:1", Origin("human:ada")), "human:ada", True), record("own", "numeric", True),
        record(record_id("s:1", Origin("human:bob")), "human:bob", True), record(record_id("s:1", Origin("human:ada"), 2), "human:ada", False),
        record(record_id("s#2", Origin("judge#2")), "judge#2", False), record(":numeric", "numeric", True),
    ]  # fmt: skip
    assert [sample_id(each) for each in records] == ["s:1", None, "s:1", "s:1", "s#2", None]
    assert {sample: record.label for sample, record in latest(records).items()} == {"s:1": False, "s#2": False}


steps = st.lists(st.tuples(st.sampled_from(["ada", "bob"]), st.sampled_from(["yes", "no", "skip", "undo", "kill"])))


@settings(max_examples=40, deadline=None)
@given(steps)
def test_whatever_people_do_what_they_said_last_counts(done):
    with tempfile.TemporaryDirectory() as folder:
        path = answers(Path(folder))
        queue, model, skipped = queue_of(path), {}, {"ada": set(), "bob": set()}
        back = dict[str, str]()
        for person, step in done:
            if step == "kill":
                queue, back = queue_of(path), {}
                continue
            if step == "undo":
                sample = queue.before(person, back.get(person))
                if sample is not None:
                    assert (sample.id, person) in model
                    back[person] = sample.id
                continue
            held = back.pop(person, None)
            sample = queue.target.find(held) if held else queue.next(person, skipped[person])
            if sample is None:
                continue
            assert held or sample.id not in {judged for judged, _ in model}, "judged already"
            if step == "skip":
                skipped[person].add(sample.id)
                continue
            queue.judge(person, sample.id, YES if step == "yes" else NO)
            model.pop((sample.id, person), None)
            model[sample.id, person] = step == "yes"
            for other in {"ada", "bob"} - {person}:
                given = queue.next(other, skipped[other])
                assert given is None or given.id not in {judged for judged, _ in model}
        records = Journal(queue.target.journal).read()
        assert len({record.id for record in records}) == len(records)
        assert {sample: record.label for sample, record in latest(records).items()} == {
            sample: label for (sample, _), label in model.items()
        }
        for (sample, person), label in model.items():
            assert queue.said(sample)[person].label == label
        assert queue.progress("eve").judged == len({sample for sample, _ in model})


WRITER = """
import sys
from pathlib import Path
from hf_peft_recipes.feedback.asking import Feedback
from hf_peft_recipes.feedback.people.queue import Queue
from hf_peft_recipes.feedback.people.target import open_target
queue = Queue(open_target(Path(sys.argv[1])))
for n in range(int(sys.argv[3])):
    for sample in queue.target.samples():
        queue.judge("ada", sample, Feedback(label=n % 2 == 0, text=f"{sys.argv[2]} {n}"))
        print(sample, n, flush=True)
"""


def test_a_kill_loses_nothing_that_was_acknowledged(tmp_path):
    path = answers(tmp_path)
    for turn, moment in enumerate((1, 7, 20)):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, path, f"w{turn}", "99"], stdout=subprocess.PIPE, text=True
        )
        told = [writer.stdout.readline() for _ in range(moment)]
        writer.kill()
        told = [line.split() for line in [*told, *writer.communicate()[0].splitlines()]]
        written = {(sample_id(record), record.feedback) for record in Journal(queue_of(path).target.journal).read()}
        assert {(sample, f"w{turn} {n}") for sample, n in told} <= written
        # A line that was cut in the middle, as the next writer finds it.
        with (tmp_path / "answers.feedback.jsonl").open("ab") as file:
            file.write(b'{"schema_version": 1, "prom')
    queue = queue_of(path)
    queue.judge("bob", queue.before("ada").id, NO)
    assert said(tmp_path / "answers.feedback.jsonl")[-1][1] == "bob"


def test_two_processes_under_one_name_lose_nothing(tmp_path):
    path = answers(tmp_path)
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, path, name, "10"], stdout=subprocess.DEVNULL) for name in "xy"
    ]
    assert [writer.wait() for writer in writers] == [0, 0]
    texts = [text for _, _, _, text, _ in said(tmp_path / "answers.feedback.jsonl")]
    assert sorted(texts) == sorted(f"{name} {n}" for name in "xy" for n in range(10) for _ in range(4))


def test_two_people_get_different_samples_and_keep_both_answers(tmp_path):
    path, now = answers(tmp_path, count=2), [0.0]
    ada, bob = (queue_of(path, seconds=600, clock=lambda: now[0]) for _ in range(2))
    first, second = ada.next("ada"), bob.next("bob")
    assert first.id != second.id
    assert ada.next("ada") == first, "until it is judged"
    assert bob.next("eve") is None
    assert bob.progress("eve").held == 2
    now[0] = 500
    bob.keep("bob", second.id)
    now[0] = 700
    assert bob.next("eve") == first, "ada's lease is over, bob's is not"
    ada.judge("ada", first.id, NO)
    bob.judge("eve", first.id, Feedback(label=False, correction="better"))
    assert [who for _, who, *_ in said(path.with_name("answers.feedback.jsonl"))] == ["ada", "eve"]
    assert ada.next("ada") is None
    bob.release("bob")
    assert ada.next("ada") == second
    (tmp_path / "leases").write_text('{"half')
    assert bob.next("bob") == second, "a broken file of leases costs double work alone"


def test_asking_twice_is_judging_once(tmp_path):
    queue = queue_of(answers(tmp_path))
    sample = queue.next("ada").id
    records = [queue.judge("ada", sample, each) for each in (YES, YES, NO, NO, YES)]
    assert [record.id for record in records] == [f"{sample}:human:ada{end}" for end in ("", "", "#2", "#2", "#3")]
    assert len(said(queue.target.journal)) == 3


def test_the_newest_round_waits(tmp_path):
    begin_round(tmp_path, 9)
    old = queue_of(tmp_path).next("ada").id
    ids = begin_round(tmp_path, 10)
    (tmp_path / "round-11").mkdir()
    queue = queue_of(tmp_path)
    numeric = Origin("numeric")
    Journal(tmp_path / "feedback.jsonl").append(
        [sample.record(YES, numeric) for sample in queue.target.samples().values()]
    )
    assert queue.next("ada").completion == "answer 0\u2028"
    assert [queue.progress("ada").judged, queue.progress("ada").total] == [0, 3], (
        "what a program says is not said by people"
    )
    record = queue.judge("ada", old, NO)
    assert (record.round, record.id) == (9, "r9-0:human:ada"), "a judgement that comes late is kept"
    for sample in ids:
        queue.judge("ada", sample, YES)
    assert queue.next("ada") is None
    begin_round(tmp_path, 11)
    assert queue.next("ada").id == "r11-0"
    with pytest.raises(UserError, match="no sample 'r8-0'"):
        queue.judge("ada", "r8-0", YES)
    # The run is begun anew.
    (tmp_path / "feedback.jsonl").unlink()
    assert queue.said("r9-0") == {}


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"prompt": "p"}', "2: completion is missing"),
        ('{"promt": "p", "completion": "c"}', "2: prompt is missing; did you mean 'promt'"),
        ('{"prompt": "p", "completion": ["c"]}', "2: completion is ['c']; a text is wanted"),
        ('{"prompt": [{"role": "user"}], "completion": "c"}', "2: prompt is [{'role': 'user'}]"),
        ('{"prompt": "p", "completion"', "2: Expecting"),
        ('{"prompt": "p", "completion": "\\ud800"}', "2: completion holds half a character"),
        ("[]", "2: a mapping is wanted"),
        ("\x85\xff", "2: "),
        ('{"schema_version": 1, "source": {"name": "x"}, "prompt": "p", "completion": "c", "label": true}', "2: a record of feedback"),
    ],
)  # fmt: skip
def test_a_bad_line_is_named(tmp_path, line, why):
    path = tmp_path / "answers.jsonl"
    path.write_bytes(b'{"prompt": "p", "completion": "c"}\n' + line.encode("latin-1"))
    with pytest.raises(UserError) as error:
        open_target(path)
    assert str(error.value).startswith(f"answers.jsonl:{why}")


def test_what_cannot_be_judged_is_told_in_a_line(tmp_path, command):
    path = answers(tmp_path)
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "answers.feedback.jsonl").write_text("{}\n")
    for words, why in (
        (["answrs.jsonl"], "no such file or folder; did you mean 'answers.jsonl'"),
        (["empty.jsonl"], "holds no completions"),
        (["."], "no round waits"),
        ([".", "--output", "x.jsonl"], "--output goes with a file"),
        (["answers.jsonl", "--output", "answers.jsonl"], "is the file that is to be judged"),
        (["answers.jsonl", "--name", "a:b"], "name 'a:b': up to 40 letters"),
        (["answers.jsonl"], "answers.feedback.jsonl:1: schema_version is missing"),
    ):
        finished = command("feedback", "collect", *words, cwd=tmp_path)
        assert (finished.returncode, finished.stdout) == (2, ""), finished
        assert why in finished.stderr
        assert finished.stderr.count("\n") == 1
    assert path.read_text().count("\n") == 4


def test_names():
    assert [check_name(name) for name in (" Ada  L. ", "Žofie", "a@b.org")] == ["Ada L.", "Žofie", "a@b.org"]
    for name in ("", " ", "a:b", "a#2", "../x", "a/b", "a\x1b", "x" * 41):
        with pytest.raises(UserError):
            check_name(name)


def test_nothing_reaches_the_terminal_that_it_obeys():
    assert visible(HOSTILE + "\x9b1m\r\n\tü") == (
        "<script>window.pwned = 1</script><img src=x onerror='window.pwned = 1'> "
        r"\x1b]0;pwned\x07\x1b[2J \u202eevil\u2028\x9b1m" + "\n\tü"
    )


def test_a_full_disk_is_waited_for(tmp_path):
    seen, limit = Terminal(answers(tmp_path), "--name", "ada"), resource.RLIMIT_FSIZE
    seen.wait_for("quit > ")
    resource.prlimit(seen.pid, limit, (100, resource.RLIM_INFINITY))
    seen.type("call these words\n\n")
    seen.wait_for("cannot be saved yet: File too large; any key tries again > ")
    resource.prlimit(seen.pid, limit, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    seen.type(" q")
    assert seen.end()[0] == 0
    assert said(tmp_path / "answers.feedback.jsonl") == [("0", "ada", False, "all these words", None)]


def editor(tmp_path, body):
    path = tmp_path / "my editor"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return f"'{path}'"


def test_a_sitting_at_a_terminal(tmp_path):
    path = answers(tmp_path, count=6, completion=HOSTILE)
    journal = tmp_path / "answers.feedback.jsonl"
    seen = Terminal(path, "--name", "ada", EDITOR=editor(tmp_path, 'printf "two\\n" > "$1"'))
    assert "\x1b" not in seen.wait_for("0 of 6 judged.*quit > "), "hostile text is shown, not obeyed"
    assert "reference" not in seen.screen
    seen.type("\x1b[a")  # an arrow with shift, whose last character is a letter
    seen.type("u")
    seen.wait_for("nothing before this; nothing is written.*quit > ")
    seen.type("r")
    seen.wait_for("rejected.*1 of 6.*quit > ")
    assert said(journal) == [(HOSTILE, "ada", False, None, None)]
    seen.type("a")
    seen.wait_for("accepted.*2 of 6.*quit > ")
    seen.type("u")
    seen.wait_for("2 of 6 judged.*1 \\+ 1.*You said: accepted. It counts until you say something else.*quit > ")
    seen.type("u")
    seen.wait_for("script.*You said: rejected.*quit > ")
    seen.type("a")
    seen.wait_for("accepted.*2 \\+ 2.*quit > ")
    assert [label for _, _, label, *_ in said(journal)] == [False, True, True]
    seen.type("e")
    seen.wait_for("what was wrong.*said. > ")
    seen.type("it is a word\n")
    seen.wait_for("corrected, with a critique.*quit > ")
    seen.type("cno,\nthat is wrong – so wrong\n\n")
    seen.wait_for("rejected, with a critique.*quit > ")
    assert said(journal)[-2:] == [
        ("4", "ada", False, "it is a word", "two"),
        ("6", "ada", False, "no,\nthat is wrong – so wrong", None),
    ]
    seen.type("c\n")
    seen.wait_for("the critique is empty; nothing is written.*quit > ")
    seen.type("s")
    seen.wait_for("5 \\+ 5.*quit > ")
    assert "is judging in another terminal; --name" in Terminal(path, "--name", "ada").end()[1]
    seen.kill()
    assert len(said(journal)) == 5

    again = Terminal(path, "--name", "ada", "--show_reference", EDITOR="no-such-editor")
    again.wait_for("4 of 6 judged.*5 \\+ 5.*reference.*10.*quit > ")
    again.type("e")
    again.wait_for("'no-such-editor' does not start.*quit > ")
    again.type("a")
    again.wait_for("4 \\+ 4.*quit > ")
    # Not Ctrl-D: between two reads the terminal itself takes that one, and nobody ever gets it.
    again.type("q")
    code, screen = again.end()
    assert code == 0
    assert f"5 of 6 judged, 1 wait; records in {journal}" in screen
    assert sorted(each.name for each in tmp_path.glob(".answers*")) == [".answers.feedback.jsonl.leases"]


def test_an_edit_that_was_cut_off_goes_on(tmp_path):
    path = answers(tmp_path)
    busy = Terminal(path, EDITOR=editor(tmp_path, 'echo half > "$1"; echo editing; sleep 60'), LOGNAME="bob")
    busy.wait_for("quit > ")
    busy.type("e")
    busy.wait_for("editing")
    busy.kill()
    unchanged = Terminal(path, EDITOR=editor(tmp_path, 'cat "$1"; exit 3'), LOGNAME="bob")
    unchanged.wait_for("quit > ")
    unchanged.type("e")
    unchanged.wait_for("half.*ended with code 3; what was typed is there with the next e.*quit > ")
    unchanged.type("eq")
    assert unchanged.end()[1].count("half") == 2
    done = Terminal(path, EDITOR=editor(tmp_path, 'echo "and whole" >> "$1"'), LOGNAME="bob")
    done.wait_for("quit > ")
    done.type("e\n")
    done.wait_for("corrected.*quit > ")
    done.type("q")
    assert done.end()[0] == 0
    assert said(tmp_path / "answers.feedback.jsonl") == [("0", "bob", False, None, "half\nand whole")]
    assert not list(tmp_path.glob(".feedback-draft*"))


def wait_until(condition):
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError


def test_ctrl_c_leaves_the_terminal_as_it_was(tmp_path):
    seen = Terminal(answers(tmp_path))
    before = termios.tcgetattr(seen.descriptor)
    seen.wait_for("quit > ")
    wait_until(lambda: termios.tcgetattr(seen.descriptor) != before)
    seen.type("\x03")
    wait_until(lambda: termios.tcgetattr(seen.descriptor) == before)
    assert seen.end()[0] == 130


def test_keys_from_a_pipe(tmp_path):
    path = answers(tmp_path)
    words = [
        sys.executable,
        "-m",
        "hf_peft_recipes",
        "feedback",
        "collect",
        path,
        "--name",
        "ada",
        "--output",
        tmp_path / "of" / "ada.jsonl",
    ]
    finished = subprocess.run(words, input="x\n\na\nc\nfirst\nsecond", capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert [each[2:4] for each in said(tmp_path / "of" / "ada.jsonl")] == [(True, None), (False, "first\nsecond")]
    assert "2 of 4 judged, 2 wait" in finished.stdout
