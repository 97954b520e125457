"""The whole path of one run, on one page: model and data, trainer, before, training, after, the run's folder."""

import dataclasses
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object

from hf_peft_recipes import certificate, launching, pickles, preemption, recovery, results, saving
from hf_peft_recipes.assembly import Prepared, prepare
from hf_peft_recipes.checkpoints.disk import disk_told
from hf_peft_recipes.checkpoints.writing import tidy
from hf_peft_recipes.data import Example
from hf_peft_recipes.errors import NonFiniteError
from hf_peft_recipes.evaluation import Metrics, compared, evaluation_section, find_task, score_rows, summarize
from hf_peft_recipes.finite import FiniteGuard, LossSpikes
from hf_peft_recipes.hub.request import PushRequest
from hf_peft_recipes.hub.runs import publish_run, reserve_place
from hf_peft_recipes.measure.clock import StepClock
from hf_peft_recipes.preflight import Examined, RunRequest, clear_run
from hf_peft_recipes.proof import TrainingProof
from hf_peft_recipes.provenance import begin_record, data_record
from hf_peft_recipes.report.plot import plot_losses
from hf_peft_recipes.sharding import before_first_step
from hf_peft_recipes.spec import ResolvedRecipe, recipe_file
from hf_peft_recipes.spec.objectives import objective_facts
from hf_peft_recipes.spec.serialize import with_absolute_paths
from hf_peft_recipes.stopping import BestCheckpoint, BudgetEnd, PreemptionEnd


def run(
    recipe: ResolvedRecipe, request: RunRequest, examined: Examined, publication: PushRequest | None = None
) -> dict[str, Any]:
    """Train, evaluate, save and publish; return the run's record, which stands in `result.json` too.

    Args:
        recipe: with every value decided.
        request: what is asked for beside it.
        examined: as `preflight.examine` returns it.
        publication: where the run goes on the Hub; None keeps it here.

    Raises:
        UserError, LaunchError: as `prepare` raises them, before anything is written.
        NotTrainedError: training ran and did not train; the folder's record says so.
        NonFiniteError: a loss, a gradient or a weight was not finite.
        OutOfMemoryError: a step does not fit into memory.
        CertificateError: what was saved does not load as what was trained.
        HubError: the run is done and was not published; the folder is whole.
        PreemptedError: the process was asked to end; the folder's record says so.
        DiskError: the folder cannot be written.
    """
    with disk_told(examined.output_dir):
        return _run(recipe, request, examined, publication)


def _run(
    recipe: ResolvedRecipe, request: RunRequest, examined: Examined, publication: PushRequest | None
) -> dict[str, Any]:
    if request.dry_run:
        return _dry_run(recipe, request, examined)
    folder, started = examined.output_dir, time.perf_counter()
    checkpoints = None
    if publication and launching.rank_from_environment() == 0:
        checkpoints = reserve_place(recipe, request, publication)
    prepared = prepare(recipe, request, examined)
    record, main = _record(recipe, request, examined, prepared), prepared.world.is_main
    clock, written = _callback(prepared.trainer, StepClock), prepared.trainer.checkpoints
    try:
        prepared.trainer.add_callback(PreemptionEnd(prepared.trainer.wait_for_seal))
        if request.resume and (earlier := recovery.read_recoveries(folder)):
            record["recoveries"] = earlier
        if checkpoints:
            # After it: who is asked to end has no time to publish.
            checkpoints.wait_for_seal = prepared.trainer.wait_for_seal
            prepared.trainer.add_callback(checkpoints)
        if main:
            # Only now that nothing can be refused any more is the earlier run given up.
            if request.overwrite:
                clear_run(folder)
            folder.mkdir(parents=True, exist_ok=True)
            tidy(folder)
            for line in [*(examined.resumption.told() if examined.resumption else []), *prepared.told]:
                print(line, file=sys.stderr, flush=True)
            results.write_text(folder / results.RECIPE_FILE, recipe_file(with_absolute_paths(recipe)))
            results.write_result(folder, record)
            saving.pin_base(prepared.model, recipe, folder)
        _train(recipe, request, examined, prepared, record)
        prepared.release()
        if main:
            _certify(recipe, folder, record)
            prepared.phases.lap("certify")
        record |= {"status": "done", "exit_code": 0}
    except BaseException as error:
        record |= results.ending(error)
        if isinstance(error, NonFiniteError):
            record["nonfinite"] = error.facts
        if prepared.trainer is not None:
            record |= _course(prepared.trainer)
        raise
    finally:
        if main:
            record["measured"].setdefault("steps", clock.done)
            if prepared.signal is not None:
                record["rewards"] |= prepared.signal.result()
            record["measured"] |= {"total_seconds": time.perf_counter() - started, "phases": prepared.phases.shown()}
            record["checkpoints"] = written.shown()
            if checkpoints:
                record["published_checkpoints"] = checkpoints.result()
            with preemption.deferred():
                results.write_result(folder, record)
    if publication and main:
        publish_run(folder, publication, record)
    return record


def _train(
    recipe: ResolvedRecipe, request: RunRequest, examined: Examined, prepared: Prepared, record: dict[str, Any]
) -> None:
    """Evaluate, train, save and evaluate again, filling in the record."""
    trainer, folder, phases = prepared.trainer, examined.output_dir, prepared.phases
    clock, proof = _callback(trainer, StepClock), _callback(trainer, TrainingProof)
    examples = prepared.data.held_out
    task = find_task(examples, (recipe.section("evaluation") or {})["task"], objective_facts(recipe.objective).head)
    before: Metrics | None = None

    def evaluate() -> None:
        nonlocal before
        before = _evaluate(recipe, prepared, examples, task)
        phases.lap("evaluate")
        phases.settle()

    def note(done: recovery.Recovery) -> None:
        record["recoveries"] = [*record.get("recoveries", []), done]
        if prepared.world.is_main:
            results.write_result(folder, record)

    preemption.doing("before the first step")
    if not prepared.world.shards:
        evaluate()
    begin, policy = examined.resumption.path if examined.resumption else None, recovery.policy_of(recipe, request)
    with preemption.deferred(), pickles.values_alone(begin):
        if prepared.world.shards:
            before_first_step(trainer, evaluate)
        recovery.train(trainer, begin, policy, record.get("recoveries", []), note)
    preemption.doing("after the last step")
    record["measured"] |= {"peak_memory_bytes": phases.peak_memory_bytes("train"), **clock.result()}
    record |= _course(trainer)
    record["proof"] = proof.result()
    best, budget = _callback(trainer, BestCheckpoint), _callback(trainer, BudgetEnd)
    if best and best.result():
        record["stopping"] = best.result()
    if budget:
        record["budget"] = budget.result()
    record["data"]["ledger"] = prepared.data.ledger()
    phases.settle()
    # Without the autocast that training puts around the forward pass: a client has none.
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    prepared.method.finish(model)
    # Before anything else can fail.
    if prepared.world.is_main or prepared.world.shards:
        with disk_told(folder):
            saving.save(model, prepared.renderer, recipe, folder, prepared.world.is_main)
    if prepared.world.is_main:
        plot_losses(record["loss_curve"], folder / "loss.png", recipe.name)
    phases.lap("save")
    after = _evaluate(recipe, prepared, examples, task, before)
    phases.lap("evaluate")
    if before and after:
        section = recipe.section("evaluation") or {}
        record["metrics"] = compared(task, examined.examples.held_out_split, len(examples), before, after, section)
    trainer.accelerator.wait_for_everyone()


def _course(trainer: Any) -> dict[str, Any]:
    """Return the losses of a run so far, and what there is to be said of its numbers."""
    spikes = _callback(trainer, LossSpikes)
    return {
        "loss_curve": [_point(log) for log in trainer.state.log_history if "loss" in log or "eval_loss" in log],
        "numbers": _callback(trainer, FiniteGuard).result(),
        **({"spikes": spikes.found} if spikes else {}),
    }


def _certify(recipe: ResolvedRecipe, folder: Path, record: dict[str, Any]) -> None:
    """Let a fresh process load what was saved, and write its verdict into the record."""
    if recipe.value("certify") == "off":
        return
    record["certificate"] = certificate.certify_in_fresh_process(folder)
    certificate.require(record["certificate"], str(folder))


def _evaluate(
    recipe: ResolvedRecipe, prepared: Prepared, examples: Sequence[Example], task: str, before: Metrics | None = None
) -> Metrics | None:
    """Return the metrics of the model as it is now, every process having scored its share; None without rows."""
    if not examples:
        return None
    section, world = evaluation_section(recipe), prepared.world
    # Where a pass takes all processes, all of them score all rows, in step.
    share = list(range(len(examples)) if world.shards else range(world.rank, len(examples), world.size))
    arguments = prepared.trainer.args
    # What generates here must multiply as it does in training: a float32 model under autocast is such a case.
    with torch.autocast(prepared.model.device.type, torch.bfloat16, enabled=bool(arguments.bf16)):
        scores = score_rows(
            prepared.model, prepared.renderer, [examples[index] for index in share], task, section,
            sorted(prepared.renderer.stop_ids), arguments.max_length, objective_facts(recipe.objective).head,
            prepared.rewards,
        )  # fmt: skip
    numbered = list(zip(share, scores, strict=True))
    gathered = gather_object(numbered) if world.size > 1 and not world.shards else numbered
    scores = [score for _, score in sorted(gathered, key=lambda pair: pair[0])]
    return summarize(scores, task, section, arguments.seed, before.scores if before else None)


def _dry_run(recipe: ResolvedRecipe, request: RunRequest, examined: Examined) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        prepared = prepare(recipe, request, dataclasses.replace(examined, output_dir=Path(scratch)))
        prepared.trainer.train()
    record = _record(recipe, request, examined, prepared)
    record["measured"] |= {"peak_memory_bytes": prepared.phases.peak_memory_bytes("train")}
    record["loss_curve"] = [_point(log) for log in prepared.trainer.state.log_history if "loss" in log]
    return record | {"status": "dry_run", "exit_code": 0}


def _record(recipe: ResolvedRecipe, request: RunRequest, examined: Examined, prepared: Prepared) -> dict[str, Any]:
    record = begin_record(recipe, request, examined, prepared.world.size)
    arguments = prepared.trainer.args
    record |= {
        "speed": prepared.speed,
        "recompute": str(prepared.recompute),
        "seeds": {"training": arguments.seed, "data": arguments.data_seed},
        "data": data_record(recipe, examined, prepared.renderer, prepared.checks, prepared.data.ledger()),
        "parameters": dataclasses.asdict(prepared.parameters),
    }
    if examined.resumption:
        record["resumed"] = examined.resumption.shown()
    if weights := _weights(prepared):
        record["rewards"] = {"weights": weights}
    return record


def _weights(prepared: Prepared) -> dict[str, float]:
    return {reward.name: reward.weight for reward in prepared.rewards}


def _callback(trainer: Any, kind: type[Any]) -> Any:
    return next((callback for callback in trainer.callback_handler.callbacks if isinstance(callback, kind)), None)


def _point(log: dict[str, Any]) -> dict[str, float]:
    kept = (
        "step", "epoch", "loss", "eval_loss", "learning_rate", "grad_norm", "reward", "eval_reward", "reward_std",
        "frac_reward_zero_std", "kl", "entropy", "completions/mean_length", "completions/clipped_ratio",
    )  # fmt: skip
    # The record is JSON, which has no NaN; what is none stops the run, and is told there.
    return {key: float(log[key]) for key in kept if log.get(key) is not None and math.isfinite(float(log[key]))}
