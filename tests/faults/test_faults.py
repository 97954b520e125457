"""Faults put into runs: no run is lost, no folder is in a third state, nothing is left behind.

One process imports everything and forks for each run, see `zygote`; a sample of what can be tried is tried always.
"""

import json
import shutil
import signal
from pathlib import Path

import pytest
from loopback_hub import LoopbackHub

from benchmarks.report.__main__ import RESULTS
from benchmarks.report.faults import report
from faults.__main__ import COUNTED, counts
from faults.course import ROWS, SETTINGS, WEIGHTS, Undisturbed, digests, state_problems, without_date
from faults.zygote import Zygote
from hf_peft_recipes.checkpoints import newest_good, verify
from hf_peft_recipes.checkpoints.manifest import MANIFEST_FILE, seal
from hf_peft_recipes.checkpoints.verdicts import list_checkpoints
from hf_peft_recipes.embedded import DATA_DIR, MODEL_DIR
from hf_peft_recipes.results import read_result

SAMPLE = 2
"""Faults of each of three phases that every run of the tests draws."""


@pytest.fixture(scope="module")
def zygote():
    with Zygote() as found:
        yield found


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("faults").resolve()


@pytest.fixture(scope="module")
def whole(zygote, scratch):
    """Return the folder of the run without faults, and what is known of it."""
    done = zygote.do("undisturbed", scratch=scratch)
    assert done["code"] == 0, done["said"]
    return scratch / "undisturbed"


@pytest.fixture
def killed(whole, tmp_path):
    """Return a copy of the run's folder as it stood before what was trained had been saved."""
    folder = tmp_path / "out"
    shutil.copytree(whole, folder)
    (folder / WEIGHTS).unlink()
    record = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps({**record, "status": "running", "exit_code": None}))
    return folder


def not_fine(done):
    assert done["code"] == 0, done["said"]
    return [one["told"] for one in done["value"]["outcomes"] if one["wrong"] or one["lost"] or one["orphans"]]


def test_no_change_of_the_disk_escapes_the_shim(zygote, whole, scratch):
    done = zygote.do("log", scratch=scratch)
    assert done["code"] == 0, done["said"]
    place, changes = scratch / "logged", done["value"]
    written = {}
    for name, size, path in changes:
        if name == "write":
            written[path] = written.get(path, 0) + size
    # safetensors writes into a file of a name of its own, and renames it.
    unnamed = sum(size for path, size in written.items() if Path(path).name.startswith(".tmp"))
    for folder, beside in {
        "checkpoint-4": ".checkpoint-4.partial",
        "checkpoint-6": ".checkpoint-6.partial",
        "": ".saved.partial",
    }.items():
        for path in (path for path in (place / folder).iterdir() if path.is_file()):
            size = path.stat().st_size
            if path.suffix == ".safetensors":
                unnamed -= size
                continue
            # Some are written anew, each time beside themselves.
            as_itself, anew = f"{beside}/{path.name}", f".{path.name}."
            assert size in {written[one] for one in written if one == as_itself or Path(one).name.startswith(anew)}, (
                path
            )
    # The weights of the checkpoint that was removed.
    assert unnamed == (place / "checkpoint-4" / WEIGHTS).stat().st_size
    names = [name for name, _, path in changes if path.startswith(".checkpoint-4.partial/")]
    files = len(list((place / "checkpoint-4").iterdir()))
    assert names.count("sync") >= files
    renamed = [
        path
        for name, _, path in changes
        if name == "rename" and path in ("checkpoint-2", "checkpoint-4", "checkpoint-6")
    ]
    assert renamed == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    # The name of each lasts before anything else happens.
    for path in renamed:
        at = next(number for number, one in enumerate(changes) if one[0] == "rename" and one[2] == path)
        assert changes[at + 1] == ["sync", 0, "."]


def test_a_sample_of_faults_costs_no_run(zygote, whole, scratch, tmp_path):
    # The other checkpoints are written as the last one is, and remove nothing.
    done = zygote.do("sweep", scratch=scratch, number=SAMPLE, seed=1, phases=["beginning", "checkpoint 6", "finishing"])
    assert not_fine(done) == []
    outcomes, rows = done["value"]["outcomes"], counts(done["value"]["outcomes"])
    assert len(outcomes) == 3 * SAMPLE == sum(row["injected"] for row in rows)
    # Each phase changes the disk; each checkpoint some eighty times.
    assert all(sum(found.values()) > 10 for found in done["value"]["operations"].values())


@pytest.mark.slow_sweep
def test_all_faults_cost_no_run(zygote, whole, scratch):
    assert not_fine(zygote.do("sweep", scratch=scratch, progress=scratch / "progress")) == []


def test_the_sweep_finds_a_run_that_is_lost(zygote, whole, scratch):
    # What draws random numbers does not come back with a checkpoint.
    done = zygote.do(
        "sweep", scratch=scratch, number=1, seed=4, kinds=["kill"], phases=["checkpoint 4"], without="_load_rng_state"
    )
    assert len(not_fine(done)) == 1 and "other weights" in not_fine(done)[0]


def test_the_sweep_finds_what_was_not_synced(zygote, whole, scratch):
    # While the old checkpoint is removed, the new one must be there to stay.
    done = zygote.do(
        "sweep", scratch=scratch, number=1, seed=None, kinds=["power loss"], phases=["checkpoint 6"], without="fsync"
    )
    assert (
        len(not_fine(done)) == 1 and "the newest good checkpoint is that of step 4, not one of {6}" in not_fine(done)[0]
    )


def test_while_an_old_checkpoint_is_removed_the_new_one_is_there_to_stay(zygote, whole, scratch):
    # The same fault as above, and two before it, nothing being taken from the code.
    done = zygote.do("sweep", scratch=scratch, number=3, seed=None, kinds=["power loss"], phases=["checkpoint 6"])
    assert not_fine(done) == []


def test_a_state_that_is_neither_old_nor_new_is_seen(killed):
    wanted = Undisturbed("", {step: without_date(digests(killed / f"checkpoint-{step}")) for step in (4, 6)}, set())
    assert state_problems(killed, {4, 6}, wanted) == []
    path = killed / "checkpoint-6"
    (path / "scheduler.pt").write_bytes(b"something else")
    assert state_problems(killed, {4, 6}, wanted) == []
    assert "step 4, not one of" in state_problems(killed, {6}, wanted)[0]
    manifest = verify(path).manifest
    (path / MANIFEST_FILE).unlink()
    seal(path, 6, 6, True, manifest.batch)
    assert verify(path).good
    assert state_problems(killed, {4, 6}, wanted) == [
        "checkpoint-6 is called good and has not been written so: scheduler.pt"
    ]


def remove(path):
    path.unlink()


def empty(path):
    path.write_bytes(b"")


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def make_a_folder_of_it(path):
    path.unlink()
    path.mkdir()


def make_a_link_of_it(path):
    path.rename(path.parents[1] / "elsewhere")
    path.symlink_to(path.parents[1] / "elsewhere")


DAMAGES = [remove, empty, halve, flip_a_bit, make_a_folder_of_it, make_a_link_of_it]
FILES = [
    "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "manifest.json", "optimizer.pt", "rng_state.pth",
    "scheduler.pt", "tokenizer.json", "tokenizer_config.json", "trainer_state.json",
]  # fmt: skip
"""Of a checkpoint; a test says that these are all."""


def test_these_are_all_files_of_a_checkpoint(whole):
    assert sorted(path.name for path in (whole / "checkpoint-6").iterdir()) == FILES


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", FILES)
def test_damage_is_named(whole, tmp_path, name, damage):
    path = tmp_path / "out" / "checkpoint-6"
    shutil.copytree(whole / path.name, path)
    damage(path / name)
    verdict = verify(path)
    assert not verdict.good
    # A flipped bit of the manifest may be one of its names.
    if name != MANIFEST_FILE:
        assert len(verdict.problems) == 1
    assert verdict.problems[0].startswith((name, f"no {name}"))


def test_a_file_that_does_not_belong_there_is_named(killed):
    (killed / "checkpoint-6" / "training_args.bin").write_bytes(b"a pickle")
    assert verify(killed / "checkpoint-6").problems == ("training_args.bin: the manifest does not name it",)


def test_a_damaged_checkpoint_is_passed_over(zygote, whole, killed):
    # The other damages and files are gone through in full by the slow one.
    goes_on_without(zygote, whole, killed, "trainer_state.json", flip_a_bit)


@pytest.mark.slow_sweep
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", FILES)
def test_any_damaged_checkpoint_is_passed_over(zygote, whole, killed, name, damage):
    goes_on_without(zygote, whole, killed, name, damage)


def goes_on_without(zygote, whole, folder, name, damage):
    damage(folder / "checkpoint-6" / name)
    done = zygote.do("run", folder=folder, resume=True)
    assert done["code"] == 0, done["said"]
    skipped = next(line for line in done["said"].splitlines() if line.startswith("skipped checkpoint-6: "))
    assert name in skipped and "going on from checkpoint-4: step 4 of 6" in done["said"]
    assert done["value"]["resumed"]["skipped"][0]["name"] == "checkpoint-6"
    assert digests(folder)[WEIGHTS] == digests(whole)[WEIGHTS]
    assert all(verdict.good for verdict in list_checkpoints(folder))


@pytest.mark.parametrize(
    ("name", "disk", "kept"),
    [
        # Room for two checkpoints and not for what is saved at the end.
        ("full", {"megabytes": 0.33}, 4),
        ("read_only", {"megabytes": 16, "read_only_from": 3}, 2),
    ],
)
def test_a_disk_that_cannot_be_written_is_told_and_the_run_goes_on_later(zygote, whole, scratch, name, disk, kept):
    place = scratch / name
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    done = zygote.do("scarce_disk", scratch=scratch, place=place, **disk)
    assert done["code"] == 0, done["said"]
    first, second = done["value"]["first"], done["value"]["second"]
    assert first["code"] == 12 and "Traceback" not in first["said"], first["said"]
    assert "warning: no checkpoint at step 6: " in first["said"]
    last = first["said"].splitlines()[-1]
    assert last.startswith("error: ") and f"its checkpoint of step {kept} is whole, and --resume goes on" in last
    assert done["value"]["wrong"] == []
    if name == "full":
        assert done["value"]["record"]["exit_code"] == 12
    assert second["code"] == 0 and f"going on from checkpoint-{kept}" in second["said"]
    assert done["value"]["lost"] == []


def test_kills_at_random_moments_change_nothing_of_the_end(zygote, scratch):
    done = zygote.do("soak", scratch=scratch, cycles=2, seed=2)
    assert done["code"] == 0, done["said"]
    assert len(done["value"]["kills"]) == 2
    assert (done["value"]["same_weights"], done["value"]["same_losses"], done["value"]["left_over"]) == (True, True, [])


SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGKILL]
ENDS_OF = {"loading": 0, "tokenising": 0, "stepping": 3, "saving": 4, "evaluating": 6, "pushing": 6}
"""A phase to the step of the checkpoint that a run leaves that is asked to end there; 0 for none."""
KILLED_AT = {**ENDS_OF, "stepping": 2, "saving": 2}
"""The same of one that is killed; while it trains, the newest checkpoint may not have been sealed yet."""


@pytest.fixture(scope="module")
def words(scratch):
    """Return the command line of the run with some held-out rows, without its folder."""
    lines = (DATA_DIR / "train.jsonl").read_text("utf-8").splitlines()[:ROWS]
    (scratch / "rows.jsonl").write_text("\n".join(lines) + "\n")
    told = SETTINGS | {
        "data.validation_rows": 4,
        "evaluation.max_rows": 2,
        "evaluation.task": "text",
        "target_modules": json.dumps(SETTINGS["target_modules"]),
    }
    del told["data.validation_size"]
    return [
        "train",
        "lora",
        "--dataset",
        str(scratch / "rows.jsonl"),
        *(str(word) for key, value in told.items() for word in (f"--{key}", value)),
    ]


@pytest.fixture(scope="module")
def commanded(zygote, scratch, words):
    """Return the digest of the weights that this command trains where nothing comes between."""
    done = zygote.do("command_line", words=[*words, "--output_dir", str(scratch / "commanded")])
    assert done["code"] == 0, done["said"]
    return digests(scratch / "commanded")[WEIGHTS]


@pytest.mark.parametrize(
    ("phase", "number"),
    [
        ("loading", signal.SIGTERM),
        ("saving", signal.SIGUSR1),
        ("evaluating", signal.SIGINT),
    ],
)
def test_a_signal_ends_a_run_that_goes_on(zygote, commanded, words, tmp_path, phase, number):
    ends_and_goes_on(zygote, commanded, words, tmp_path, phase, number)


@pytest.mark.slow_sweep
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize("phase", [phase for phase in ENDS_OF if phase != "pushing"])
def test_any_signal_in_any_phase_ends_a_run_that_goes_on(zygote, commanded, words, tmp_path, phase, number):
    ends_and_goes_on(zygote, commanded, words, tmp_path, phase, number)


def ends_and_goes_on(zygote, weights, words, tmp_path, phase, number):
    folder = tmp_path / "out"
    told = [*words, "--output_dir", str(folder)]
    done = zygote.do("command_line", words=told, phase=phase, number=int(number))
    is_kill = number == signal.SIGKILL
    assert (done["code"], done["orphans"]) == (-9 if is_kill else 10, 0), done["said"]
    if not is_kill:
        assert f"({number.name})" in done["said"].splitlines()[-1], done["said"]
    step = (KILLED_AT if is_kill else ENDS_OF)[phase]
    newest, skipped = newest_good(folder)
    found = newest.step if newest else 0
    assert skipped == [] and found in ({0, step} if is_kill and phase == "stepping" else {step})
    begun = (folder / "recipe.yaml").is_file()
    if begun and not is_kill:
        assert read_result(folder)["status"] == "preempted"
    done = zygote.do("command_line", words=[*told, *(["--resume"] if begun else [])])
    assert (done["code"], done["orphans"]) == (0, 0), done["said"]
    assert digests(folder)[WEIGHTS] == weights
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".") or path.suffix == ".lock"]


@pytest.mark.slow_sweep
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_while_a_run_is_pushed_leaves_it_done_and_unpublished(scratch, words, tmp_path, number):
    with LoopbackHub(tmp_path / "hub") as hub:
        files = {path.name: path.read_bytes() for path in MODEL_DIR.iterdir() if path.is_file()}
        hub.add_repo("me/base", {**files, "README.md": b"---\nlicense: mit\n---\nA base.\n"})
        variables = hub.environment(hub.add_user("me"), tmp_path / "cache")
        told = [
            *words,
            "--output_dir",
            str(tmp_path / "out"),
            "--push_to_hub",
            "--hub_model_id",
            "me/trained",
            "--base_model",
            "me/base",
        ]
        with Zygote(variables, whole=True) as zygote:
            done = zygote.do("command_line", words=told, phase="pushing", number=int(number))
            assert (done["code"], done["orphans"]) == (-9 if number == signal.SIGKILL else 10, 0), done["said"]
            assert WEIGHTS not in hub.files("me/trained")
            assert read_result(tmp_path / "out")["status"] == "done"
            again = ["push", str(tmp_path / "out"), "me/trained", "--base_model", "me/base"]
            pushed = zygote.do("command_line", words=again)
            assert pushed["code"] == 0, pushed["said"]
            assert WEIGHTS in hub.files("me/trained")


def test_the_report_tells_of_what_was_not_fine(tmp_path):
    file = tmp_path / "faults.json"
    assert report(file, "faults") is None
    soak = json.loads((RESULTS / "soak.json").read_text())
    counted = {name: 3 if name in ("injected", "died") else 0 for name in COUNTED}
    record = {
        **{name: soak[name] for name in ("schema_version", "seed", "seconds", "hardware", "versions", "date", "commit")},
        "drawn": None, "changes": {"finishing": {"open": 2, "write": 5}}, "states": 1, "not_fine": [],
        "counts": [{"phase": "finishing", "kind": kind, **counted} for kind in ("kill", "io error")],
    }  # fmt: skip
    file.write_text(json.dumps(record))
    assert "runs lost 0" in report(file, "faults").block.text
    record["counts"][0]["lost"] = 7
    file.write_text(json.dumps(record))
    section = report(file, "faults")
    assert "runs lost 7" in section.block.text
    assert len(section.table.rows) == len(record["counts"])
