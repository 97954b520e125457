"""The trials of a sweep as Optuna keeps them: a study in a file that survives whatever ends the process."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy import URL

from hf_peft_recipes.redaction import redact
from hf_peft_recipes.sweep.plan import Sweep
from hf_peft_recipes.sweep.space import CHOICE, Dimension

STUDY_FILE = "study.db"
ATTEMPTS = 3
"""So often a trial is begun that something ends from outside: it may be the trial itself that the system ends."""
CUT_OFF = "cut off"
_NAME = "sweep"
_STATES = {TrialState.COMPLETE: "done", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


class Study:
    """The trials of one sweep, in `study.db` of its folder.

    A database is taken, and not Optuna's journal: what ends in the middle of a line or of a lock spoils no transaction.
    """

    def __init__(self, folder: Path, sweep: Sweep) -> None:
        self._study = open_study(folder / STUDY_FILE, sweep.minimizes)
        self._seed = sweep.seed
        self._distributions = {dimension.key: _distribution(dimension) for dimension in sweep.dimensions}

    def take_back(self) -> list[int]:
        """Take trials that ran when a sweep was cut off for failed, to be run again; return their numbers."""
        found = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        for frozen in found:
            self.give_up(Trial(self._study, frozen._trial_id), frozen, "cut off: the sweep was ended while it ran")
        return [frozen.number for frozen in found]

    def give_up(self, trial: Trial, frozen: FrozenTrial, why: str) -> None:
        """Take a trial that was ended from outside for failed, and let its values be tried again."""
        begun = int(frozen.user_attrs.get("attempt", 1))
        if begun < ATTEMPTS:
            # First: a trial too many does no harm, one too few does.
            attributes = {"attempt": begun + 1, "again": frozen.number}
            self._study.enqueue_trial(dict(frozen.params), user_attrs=attributes)
            trial.set_user_attr("cut_off", True)
        self.fail(trial, why)

    def interrupt(self, trial: Trial, why: str) -> None:
        """Take the running trial for failed because the sweep is to end, and let its values be tried again."""
        self.give_up(trial, self._frozen(trial.number), f"cut off: {why}")

    def ask(self) -> Trial:
        """Return the next trial, with its values."""
        number = len(self._study.get_trials(deepcopy=False))
        # What is proposed depends on the seed and the trials before alone, wherever the sweep was cut off.
        self._study.sampler = optuna.samplers.TPESampler(seed=self._seed + number)
        return self._study.ask(self._distributions)

    def finish(self, trial: Trial, value: float) -> None:
        """Tell what came of a trial."""
        self._study.tell(trial, value)

    def prune(self, trial: Trial) -> None:
        """Tell that a trial was given up for what its evaluations said."""
        self._study.tell(trial, state=TrialState.PRUNED)

    def fail(self, trial: Trial, why: str, exit_code: int | None = None, starved: bool = False) -> None:
        """Tell that a trial failed: why, its process's exit code, and whether it was for want of memory."""
        for key, value in {"error": redact(why), "exit_code": exit_code, "starved": starved}.items():
            trial.set_user_attr(key, value)
        self._study.tell(trial.number, state=TrialState.FAIL)

    def was_pruned(self, trial: Trial) -> bool:
        """Return whether the run of a trial ended because its evaluations were behind."""
        return bool(self._frozen(trial.number).user_attrs.get("pruned"))

    def finished(self) -> list[dict[str, Any]]:
        """Return the trials that ended, in order, as JSON has them; those that were cut off and are run again too."""
        trials = self._study.get_trials(deepcopy=False, states=tuple(_STATES))
        return [_shown(frozen) for frozen in trials]

    def importances(self) -> dict[str, float]:
        """Return by how much each field decided on the metric, as shares of 1; empty where too little is known.

        Hutter et al. 2014, «An efficient approach for assessing hyperparameter importance» (fANOVA), as Optuna has it.
        """
        done = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        # Two values have no variance to share out among several fields.
        if len(done) < 4 or len({trial.value for trial in done}) < 2:
            return {}
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=self._seed)
        found: Mapping[str, float] = optuna.importance.get_param_importances(self._study, evaluator=evaluator)
        return {key: float(share) for key, share in found.items()}

    def _frozen(self, number: int) -> FrozenTrial:
        return self._study.get_trials(deepcopy=False)[number]


def open_study(path: Path, minimizes: bool | None = None) -> optuna.Study:
    """Return the study that a file holds, a new one where it holds none.

    Args:
        path: of the file.
        minimizes: whether its values are better when lower; None to open one that is there.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.RDBStorage(URL.create("sqlite", database=str(path)).render_as_string())
    pruner = optuna.pruners.MedianPruner()
    if minimizes is None:
        return optuna.load_study(study_name=_NAME, storage=storage, pruner=pruner)
    direction = "minimize" if minimizes else "maximize"
    return optuna.create_study(
        study_name=_NAME, storage=storage, pruner=pruner, direction=direction, load_if_exists=True
    )


def _distribution(dimension: Dimension) -> BaseDistribution:
    if dimension.kind == CHOICE:
        return CategoricalDistribution(dimension.choices)
    if dimension.kind == "int":
        return IntDistribution(int(dimension.low), int(dimension.high))
    return FloatDistribution(float(dimension.low), float(dimension.high), log=dimension.is_log)


def _shown(frozen: FrozenTrial) -> dict[str, Any]:
    attributes = frozen.user_attrs
    duration = frozen.duration
    return {
        "number": frozen.number,
        "status": CUT_OFF if attributes.get("cut_off") else _STATES[frozen.state],
        "value": frozen.value if frozen.state == TrialState.COMPLETE else None,
        "params": dict(frozen.params),
        "evaluations": attributes.get("evaluations", []),
        "seconds": duration.total_seconds() if duration else None,
        "again": attributes.get("again"),
        "error": attributes.get("error"),
        "exit_code": attributes.get("exit_code"),
        "starved": bool(attributes.get("starved")),
    }
