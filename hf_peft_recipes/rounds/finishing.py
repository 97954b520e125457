"""What a run in rounds leaves: the kept model, as any other run leaves its own, and the account of the rounds."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hf_peft_recipes import certificate
from hf_peft_recipes.errors import NotTrainedError
from hf_peft_recipes.evaluation import compared, summarize
from hf_peft_recipes.feedback.journal import JOURNAL_FILE
from hf_peft_recipes.fingerprint import FINGERPRINT_FILE
from hf_peft_recipes.hub.contents import model_files
from hf_peft_recipes.report.plot import plot_losses
from hf_peft_recipes.report.rounds_plot import plot_rounds
from hf_peft_recipes.results import RESULT_FILE
from hf_peft_recipes.rounds.course import Course
from hf_peft_recipes.rounds.folder import RoundFolder, read_json
from hf_peft_recipes.rounds.loop import Account, Standing
from hf_peft_recipes.rounds.measuring import read_scores

PLOT_FILE = "rounds.png"
_OF_TRAINING = ("parameters", "speed", "recompute", "proof")


def account_of_rounds(course: Course, standing: Standing, accounts: Sequence[Account]) -> dict[str, Any]:
    """Return what `result.json` says of the rounds.

    Args:
        course: of the run.
        standing: the model that is kept.
        accounts: of all rounds, that of the start first.
    """
    settings = course.settings
    return {
        "source": {"name": course.source.name, "version": course.source.version},
        "settings": {key: value for key, value in asdict(settings).items() if key not in ("options", "engine_options")},
        "metric": accounts[-1].get("metric") or next((each["metric"] for each in accounts if "metric" in each), None),
        "kept": standing.number,
        "start": accounts[0],
        "rounds": list(accounts[1:]),
        "totals": {
            key: sum(account.get(key) or 0 for account in accounts[1:])
            for key in ("samples", "refinements", "requests", "generated_tokens")
        }
        | {"trained_tokens": sum((account.get("trained") or {}).get("tokens") or 0 for account in accounts[1:])},
    }


def finish(course: Course, standing: Standing, accounts: Sequence[Account], record: dict[str, Any], split: str) -> None:
    """Put the kept model into the run's folder, and fill in the run's record.

    Args:
        course: of the run.
        standing: the model that is kept.
        accounts: of all rounds, that of the start first.
        record: of the run.
        split: that the held-out rows are of.

    Raises:
        NotTrainedError: no round was kept.
        CertificateError: what was put there does not load as what was trained.
    """
    folder = course.folder
    record["feedback"] = account_of_rounds(course, standing, accounts)
    _measured(course, record, standing, accounts, split)
    plot_rounds(record["feedback"], folder / PLOT_FILE, course.recipe.name)
    if standing.run is None or standing.record is None:
        reasons = "; ".join(f"round {account['round']}: {account['why']}" for account in accounts[1:])
        raise NotTrainedError(f"no round was kept, so there is nothing better than the start ({reasons})")
    record |= {key: standing.record[key] for key in _OF_TRAINING if key in standing.record}
    _place(standing.run, folder)
    first = next(account["round"] for account in accounts[1:] if account["kept"])
    # A whole model that went on from round to round began with the base of the first of them.
    _take(RoundFolder(folder, first).training / FINGERPRINT_FILE, folder / FINGERPRINT_FILE)
    plot_losses(record["loss_curve"], folder / "loss.png", course.recipe.name)
    if course.recipe.value("certify") != "off":
        record["certificate"] = certificate.certify_in_fresh_process(folder)
        certificate.require(record["certificate"], str(folder))


def _measured(
    course: Course, record: dict[str, Any], standing: Standing, accounts: Sequence[Account], split: str
) -> None:
    """Fill in metrics, losses and costs."""
    before = summarize(read_scores(RoundFolder(course.folder, 0)), course.task, course.evaluation, course.seed)
    scores = read_scores(RoundFolder(course.folder, standing.number))
    after = summarize(scores, course.task, course.evaluation, course.seed, before.scores)
    record["metrics"] = compared(course.task, split, len(course.held_out), before, after, course.evaluation)
    steps, peak = 0, 0
    for account in accounts[1:]:
        trained = read_json(RoundFolder(course.folder, account["round"]).training / RESULT_FILE)
        if trained is None or trained["status"] != "done":
            continue
        record["loss_curve"] += [{**point, "step": point["step"] + steps} for point in trained["loss_curve"]]
        steps += trained["measured"]["steps"]
        peak = max(peak, trained["measured"]["peak_memory_bytes"] or 0)
        for key in ("tokens_per_second", "step_seconds"):
            record["measured"][key] = trained["measured"].get(key)
    record["measured"] |= {"steps": steps, "peak_memory_bytes": peak or None}


def _place(run: Path, folder: Path) -> None:
    """Put a round's adapter or model, tokenizer and statement into the run's folder."""
    for name in (*model_files(run), certificate.STATEMENT_FILE):
        if (run / name).is_file():
            _take(run / name, folder / name)


def _take(source: Path, target: Path) -> None:
    if not source.is_file():
        return
    target.unlink(missing_ok=True)
    try:
        # A whole model need not lie there twice.
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def clear_rounds(folder: Path) -> None:
    """Remove what an earlier run in rounds left, feedback and all."""
    for path in (*folder.glob("round-*"), folder / "comparison"):
        if path.is_dir():
            shutil.rmtree(path)
    for name in (PLOT_FILE, JOURNAL_FILE, "judge.jsonl"):
        (folder / name).unlink(missing_ok=True)
