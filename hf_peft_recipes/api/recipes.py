"""A recipe as a Python user holds it: decided to the last value, planned, looked at, trained."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_peft_recipes.api.runs import RunResult
from hf_peft_recipes.device import Device, detect_device, named_device
from hf_peft_recipes.embedded import EMBEDDED
from hf_peft_recipes.errors import UnplannedError, UserError
from hf_peft_recipes.spec import Override, ResolvedRecipe, recipe_file, shown

# Rooms that only a run needs are imported where it begins: `list` and `show` are to be instant.
if TYPE_CHECKING:
    from hf_peft_recipes.api.tuning import SweepResult
    from hf_peft_recipes.budget import Budget
    from hf_peft_recipes.hub.request import PushRequest
    from hf_peft_recipes.plan import MemoryPlan
    from hf_peft_recipes.plan.documents import Documents
    from hf_peft_recipes.preflight import RunRequest
    from hf_peft_recipes.rehearsal import Rehearsal


@dataclass(frozen=True)
class Recipe:
    """A recipe that is decided to the last value, and can be run."""

    resolved: ResolvedRecipe
    objects: Mapping[str, Any]
    """What the caller passed in place of names: model, tokenizer, dataset, callbacks."""
    decide: Callable[..., ResolvedRecipe] = field(repr=False, compare=False)
    """Resolves the recipe anew: for the embedded demo or not, for another device, under further overrides."""
    device: Device = field(default_factory=detect_device, repr=False)
    """That the recipe was resolved for."""
    fitted_by: str = ""
    """What `fitted` changed."""

    @property
    def name(self) -> str:
        """The recipe's name, the same for all spellings of it."""
        return self.resolved.name

    def resolve(self) -> ResolvedRecipe:
        """Return every value of the recipe, with its origin."""
        return self.resolved

    def show(self) -> dict[str, Any]:
        """Return `{name, objective, <section>: {<key>: {value, origin, reason}}}`."""
        return shown(self.resolved)

    def to_yaml(self) -> str:
        """Return the recipe as a YAML text that can be edited and run."""
        return recipe_file(self.resolved)

    def build_trainer(self, output_dir: str | Path | None = None) -> Any:
        """Return TRL's trainer with model, adapter and tokenised data, for people with a loop of their own.

        Args:
            output_dir: where the trainer saves; by default a new folder below `runs/`.

        Raises:
            UserError: as `train` raises it.
        """
        from hf_peft_recipes.preflight import examine

        request, resolved = self._request(output_dir, command="build_trainer"), self._for_run()
        if resolved.is_in_rounds:
            raise UserError(f"{self.name} learns in rounds, each with a trainer of its own: use `train`")
        examined = examine(resolved, request)
        from hf_peft_recipes.upstream_noise import quiet

        with quiet():
            from hf_peft_recipes.assembly import prepare

            return prepare(resolved, request, examined).trainer

    def plan(
        self,
        device: Device | str | None = None,
        *,
        devices: int = 1,
        sharding: str | None = None,
        trace: bool = False,
        measure: bool = False,
        data: bool = False,
    ) -> "MemoryPlan":
        """Return what a run needs in memory and time, from the base's config; at once, unless more is asked for.

        Args:
            device: a known device (`H100`), a size (`24GiB`), `cpu`; None for the one that the recipe is resolved for.
            devices: how many of them.
            sharding: `none`, `ddp`, `fsdp`, `zero1`, `zero2` or `zero3`; None for `ddp` where there are several.
            trace: run the step on torch's meta device too, which takes seconds and checks the closed form.
            measure: time a step on this machine, on few layers of the model with random weights.
            data: look at the data too: their tokens, and the hours that a run through them takes.

        Raises:
            UserError: an unknown device or base, or an architecture that transformers does not have; with `measure`, a
                device that is not here; with `data`, as `train` raises it for its data.
        """
        from hf_peft_recipes.plan import plan_run
        from hf_peft_recipes.plan.bases import find_base

        if isinstance(device, str):
            device = named_device(device)
        resolved = self._for_run(device)
        config, source, stored = find_base(resolved.section("model"), self.objects.get("model"))
        documents = self._documents(resolved) if data else None
        return plan_run(
            resolved, config, source, device or self.device, devices, sharding, trace, documents, stored, measure
        )

    def _documents(self, resolved: ResolvedRecipe) -> "Documents":
        from hf_peft_recipes.upstream_noise import quiet

        with quiet():
            from hf_peft_recipes.plan.documents import look_at_documents

            return look_at_documents(resolved, self._request(None, command="plan", dry_run=True))

    def fitted(self) -> "Recipe":
        """Return the recipe with the cheapest changes that make it fit its device; itself where it fits.

        Raises:
            UserError: as `plan` raises it, and where no change makes it fit.
        """
        plan = self.plan()
        if plan.fits:
            return self
        best = plan.advice[0] if plan.advice else None
        if best is None or not best.fits or not best.settings:
            raise UserError(
                f"{self.name} needs {plan.total_bytes / 2**30:.1f} GiB on {plan.device.describe()}, "
                "and no change that is known makes it fit"
            )
        changes = " + ".join(best.names)
        return self._with(best.settings, f"fit ({changes})", changes)

    def _with(self, settings: Mapping[str, Any], origin: str, changes: str = "") -> "Recipe":
        """Return the recipe with further settings, over those that it was asked for."""
        further = [Override(key, value, origin) for key, value in settings.items()]

        def decide(demo: bool, other: Device | None = None, more: Sequence[Override] = ()) -> ResolvedRecipe:
            return self.decide(demo, other, [*further, *more])

        return Recipe(decide(False), self.objects, decide, self.device, changes)

    def rehearse(self, wanted: bool | None = True) -> "Rehearsal | None":
        """Return what two steps on the longest rows take, with evaluation and a checkpoint, in a fresh process.

        Args:
            wanted: whether to; None leaves it to the plan: on a GPU, where it is close to the card's memory. Returns
                None where nothing is rehearsed.

        Raises:
            UserError: the run does not fit, or cannot begin at all; or the recipe holds objects, which do not go to
                another process.
        """
        if wanted is False or (wanted is None and (self.device.kind != "cuda" or self.objects)):
            return None
        if self.objects:
            raise UserError(f"a rehearsal runs in another process, and {next(iter(self.objects))} is an object here")
        from hf_peft_recipes.rehearsal import is_due, refusal, rehearse, shortened

        try:
            plan = self.plan()
        except UnplannedError:
            if wanted:
                raise
            return None
        if wanted is None and not is_due(plan):
            return None
        resolved = self._for_run()
        # What stands beside the measured is planned for the same steps, on the rows that the data have.
        short = self._with(shortened(resolved), "rehearsal")
        found = rehearse(resolved, short.plan(data=not resolved.value("data.streaming")))
        if not found.fits:
            raise refusal(self.name, found, plan)
        return found

    def inspect(self, rows: int = 3, row: int | None = None, longest: bool = False) -> dict[str, Any]:
        """Return what the data are taken for, where every row goes, and some rows token by token. Loads no weights.

        Args:
            rows: how many rows to show, evenly spaced.
            row: the one row to show, counted from 0 among the usable training rows.
            longest: show the longest rows.

        Raises:
            UserError: as `train` raises it for its data; a row that is not there.
        """
        request, resolved = self._request(None, command="inspect", dry_run=True), self._for_run()
        from hf_peft_recipes.upstream_noise import quiet

        with quiet():
            from hf_peft_recipes.inspection import inspect_data

            return inspect_data(resolved, request, rows, row, longest)

    def train(
        self,
        output_dir: str | Path | None = None,
        *,
        overwrite: bool = False,
        resume: bool = False,
        dry_run: bool = False,
        longest: bool = False,
        budget: "Budget | None" = None,
        on_nonfinite: str = "stop",
        max_rollbacks: int = 3,
        on_oom: str = "halve",
        launch: tuple[str, ...] = (),
        rehearse: bool | None = None,
        progress: bool = True,
        command: str | None = None,
        publication: "PushRequest | None" = None,
        max_seconds: float | None = None,
        trajectory: Path | None = None,
    ) -> RunResult:
        """Train, evaluate before and after, save; return the run's result.

        In the main thread the run listens to SIGTERM, SIGINT and SIGUSR1, and ends with a checkpoint where they come.

        Args:
            output_dir: the run's folder; by default a new one below `runs/`.
            overwrite: replace the run that the folder holds.
            resume: go on from the folder's last checkpoint.
            dry_run: load everything, run one step, write nothing.
            longest: take the longest rows alone, as many as all steps need: for a rehearsal.
            budget: what ends training, in place of the recipe's steps: for a race.
            on_nonfinite: what becomes of the run at the first loss or gradient that is not finite: `stop` ends it, its
                last good checkpoint stays; `rollback` goes back to that and leaves the step out.
            max_rollbacks: how often it goes back before it stops all the same.
            on_oom: what becomes of the run where a step runs out of memory: `halve` takes half as many rows at a time,
                and as many a step; `stop` ends it.
            launch: flags by which several processes train each round of a recipe of feedback: `--num_processes`, `2`.
            rehearse: as `Recipe.rehearse` has it, before anything is loaded here.
            progress: show how far it is.
            command: what started the run, for its record.
            publication: where the run goes on the Hub when it is done.
            max_seconds: after which the run ends, with a checkpoint; counted from this call.
            trajectory: a file that gets a line at each optimizer step, to compare runs by.

        Raises:
            UserError: a mistake in what was asked; nothing has been written then. Another process writes in the folder.
            PreemptedError: a signal or the time limit ended the run, which goes on with `resume`.
            LaunchError: other processes came up than were asked for.
            NotTrainedError: the run stopped itself: tensors did not train, or no round was better than the start.
            NonFiniteError: a loss, a gradient or a weight was not finite.
            OutOfMemoryError: a step does not fit into memory.
            SourceError: a source of feedback failed too often.
            WaitingError: people are to give feedback first.
            CertificateError: what was saved does not load as what was trained.
            HubError: the run is done, its folder whole, and it could not be published.
        """
        from hf_peft_recipes.preemption import doing, watching
        from hf_peft_recipes.preflight import one_run, run_folder
        from hf_peft_recipes.supervision import follow_parent

        told = command or f"hf_peft_recipes.get_recipe({self.name!r}, …).train()"
        request = self._request(
            output_dir, told, overwrite=overwrite, resume=resume, dry_run=dry_run, longest=longest, budget=budget,
            progress=progress, launch=launch, trajectory=trajectory, on_nonfinite=on_nonfinite,
            max_rollbacks=max_rollbacks, on_oom=on_oom, advise=self._memory_advice,
        )  # fmt: skip
        resolved = self._for_run()
        request.output_dir = run_folder(resolved, request)
        follow_parent()
        with watching(max_seconds), one_run(request):
            doing("while loading")
            if resolved.is_in_rounds:
                if on_nonfinite != "stop":
                    raise UserError("--on_nonfinite: rounds are rolled back where they leave nothing that is a number")
                from hf_peft_recipes.api.rounds import train_in_rounds

                return RunResult(*train_in_rounds(resolved, request, publication))
            self.rehearse(rehearse)
            return self._train(resolved, request, publication)

    def _train(self, resolved: ResolvedRecipe, request: "RunRequest", publication: "PushRequest | None") -> RunResult:
        from hf_peft_recipes.preflight import examine
        from hf_peft_recipes.upstream_noise import quiet

        examined = examine(resolved, request)
        with quiet():
            # Imported once the cheap checks are through: it brings torch and everything else along.
            from hf_peft_recipes.runner import run

            record = run(resolved, request, examined, publication)
        return RunResult(examined.output_dir, record)

    def sweep(
        self,
        space: str | Sequence[str] | Mapping[str, Any],
        *,
        trials: int = 20,
        output_dir: str | Path | None = None,
        metric: str = "eval_loss",
        progress: bool = True,
    ) -> "SweepResult":
        """Search fields of the recipe by training it many times; return the trials, best values first in `best`.

        Values are proposed by Optuna's TPE (Bergstra et al. 2011), seeded by the recipe; trials whose held-out loss
        falls behind the median of those before are given up. Each trial is a process of its own, unless the recipe
        holds objects. A sweep that was cut off goes on when it is called again with the same folder.

        Args:
            space: `"learning_rate=loguniform(1e-5,1e-3),r=8|16|64"`, or a mapping, `{"learning_rate":
                "loguniform(1e-5,1e-3)", "r": [8, 16, 64]}`; `uniform(a,b)` and `int(a,b)` are known too.
            trials: how many, those of earlier calls counted in.
            output_dir: the sweep's folder; by default a new one below `runs/`.
            metric: `eval_loss`, the held-out loss while training; or one that a run ends with (`accuracy`), then on the
                validation rows, in the direction that is better.
            progress: say on standard error what came of each trial.

        Raises:
            UserError: a mistake in the space, or one that every trial would make.
            PreemptedError: a signal ended the sweep, and the trial that ran; it goes on when it is called again.
        """
        from hf_peft_recipes.api.tuning import run_sweep
        from hf_peft_recipes.preemption import watching

        def decide(settings: Mapping[str, Any], origin: str) -> ResolvedRecipe:
            return self._with(settings, origin)._for_run()

        with watching():
            return run_sweep(self, decide, space, trials, output_dir, metric, progress)

    def _memory_advice(self) -> str:
        """Return what the plan says of a run that ran out of memory: the end of a sentence; empty without a plan."""
        from hf_peft_recipes.rehearsal import advice_of

        try:
            return advice_of(self.plan())
        except UserError:
            return ""

    def _for_run(self, device: Device | None = None) -> ResolvedRecipe:
        """Return the recipe for training: with neither model nor data, that of the embedded demo."""
        from hf_peft_recipes.lineage import continued

        ours = self.resolved.value("model.name_or_path") in EMBEDDED and self.resolved.value("data.dataset") is None
        theirs = any(self.objects.get(name) is not None for name in ("model", "dataset"))
        return continued(self.decide(ours and not theirs, device))

    def _request(self, output_dir: str | Path | None, command: str, **options: Any) -> "RunRequest":
        from hf_peft_recipes.preflight import RunRequest

        folder = None if output_dir is None else Path(output_dir).expanduser()
        return RunRequest(output_dir=folder, command=command, **options, **self.objects)
