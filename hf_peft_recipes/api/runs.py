"""Runs as a Python user holds them: finished, merged, published, pulled."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_peft_recipes.api.recipes import Recipe
    from hf_peft_recipes.spec import Override


def certify(source: str | Path, *, fresh: bool = True) -> dict[str, Any]:
    """Return the verdict on what a run wrote, loaded as a plain client loads it: `{status, checks, figures}`.

    Args:
        source: the folder of a run or of a merged model; or what was published, `user/name@revision`.
        fresh: whether to load it in a process of its own; the command line is one already.

    Raises:
        UserError: there is nothing to certify.
        HubError: the Hub was not reached, or sent other bytes than it says it holds.
    """
    from tempfile import TemporaryDirectory

    from hf_peft_recipes.upstream_noise import quiet

    with quiet(), TemporaryDirectory() as scratch:
        from hf_peft_recipes import certificate

        folder = Path(source).expanduser()
        if not folder.is_dir() and "/" in str(source):
            folder = Path(scratch) / "published"
            pull(str(source), folder)
        certificate.read_statement(folder)
        return certificate.certify_in_fresh_process(folder) if fresh else certificate.certify(folder)


def list_checkpoints(folder: str | Path) -> list[dict[str, Any]]:
    """Return the verdict on each checkpoint in a run's folder, newest first: `{name, step, good, problems, …}`.

    Args:
        folder: of the run, whether it is done or not.

    Raises:
        UserError: there is no such folder.
    """
    from hf_peft_recipes import checkpoints
    from hf_peft_recipes.errors import UserError

    path = Path(folder).expanduser()
    if not path.is_dir():
        raise UserError(f"{str(path)!r} is no folder of a run")
    return [verdict.shown() for verdict in checkpoints.list_checkpoints(path)]


def pull(name: str, folder: str | Path | None = None) -> "RunResult":
    """Return a published run, downloaded into a folder where every verb works on it.

    Args:
        name: `user/name`, or `user/name@revision`.
        folder: must be empty or not exist; by default one of the repository's name.

    Raises:
        UserError: there is no such repository, it holds no run, or the folder is in use.
        HubError: the Hub was not reached, or sent other bytes than it says it holds.
    """
    from hf_peft_recipes.hub import pulling
    from hf_peft_recipes.hub.address import parse_address

    address = parse_address(name)
    target = Path(address.repo_id.rsplit("/", 1)[1] if folder is None else folder).expanduser()
    pulling.pull(address, target)
    return RunResult.read(target)


@dataclass(frozen=True)
class RunResult:
    """What a run left behind."""

    folder: Path
    record: dict[str, Any]
    """As it stands in `result.json`."""

    @classmethod
    def read(cls, folder: str | Path) -> "RunResult":
        """Return the result of the finished run in `folder`.

        Raises:
            UserError: the folder holds no run.
        """
        from hf_peft_recipes.results import read_result

        path = Path(folder).expanduser()
        return cls(path, read_result(path))

    @property
    def status(self) -> str:
        """`done`, `failed`, `waiting` for people, or `dry_run`."""
        return str(self.record["status"])

    @property
    def metrics(self) -> dict[str, Any]:
        """`before` and `after`: metric names to values; `intervals` beside them."""
        return dict(self.record["metrics"])

    @property
    def measured(self) -> dict[str, Any]:
        """`peak_memory_bytes`, `tokens_per_second`, `step_seconds` and more."""
        return dict(self.record["measured"])

    def recipe(self, overrides: "Sequence[Override]" = ()) -> "Recipe":
        """Return the recipe of the run, exactly as it ran but for the overrides."""
        from hf_peft_recipes.api.shelf import resolve_recipe
        from hf_peft_recipes.results import RECIPE_FILE

        return resolve_recipe(str(self.folder / RECIPE_FILE), overrides, exact=True)

    def load(self) -> Any:
        """Return the trained model with its tokenizer and stop ids, see `hf_peft_recipes.trained.TrainedModel`."""
        resolved = self.recipe().resolved
        from hf_peft_recipes.upstream_noise import quiet

        with quiet():
            from hf_peft_recipes import trained

            return trained.load(self.folder, resolved, self.record)

    def evaluate(self, *, with_base: bool = True, overrides: "Sequence[Override]" = ()) -> dict[str, Any]:
        """Return the metrics on the run's held-out rows, measured now: `before` of the base, `after`, `difference`.

        Args:
            with_base: whether to score the base too.
            overrides: of the run's recipe: how many rows, other data, another task.

        Raises:
            UserError: the model or the data cannot be read any more.
        """
        recipe = self.recipe(overrides).resolved
        from hf_peft_recipes.upstream_noise import quiet

        with quiet():
            from hf_peft_recipes import trained

            return trained.evaluate(trained.load(self.folder, recipe, self.record), self.record, with_base)

    def gate(self, policy: str | Path, *, overrides: "Sequence[Override]" = ()) -> dict[str, Any]:
        """Return whether the run may ship: `verdict` (`ship` or `do not ship`), `conditions` and their figures.

        Args:
            policy: a YAML file; see `hf_peft_recipes.gate.Policy`.
            overrides: of the run's recipe: how many rows, other data, another task.

        Raises:
            UserError: a mistake in the policy, or rows too few to decide by; nothing has been loaded then.
        """
        from hf_peft_recipes.gate.policy import read_policy

        asked, recipe = read_policy(policy), self.recipe(overrides).resolved
        from hf_peft_recipes.upstream_noise import quiet

        with quiet():
            from hf_peft_recipes.gate.decision import decide

            return decide(self.folder, recipe, self.record, asked)

    def evaluate_tasks(
        self, tasks: Sequence[str], *, with_base: bool = True, overrides: "Sequence[Override]" = (), **options: Any
    ) -> dict[str, Any]:
        """Return what lm-evaluation-harness measures, `before` of the base and `after`: task to metric to its value.

        Args:
            tasks: names that the harness knows.
            with_base: whether to evaluate the base too.
            overrides: of the run's recipe.
            options: of the harness, by its own names: `num_fewshot`, `limit`, `apply_chat_template`, `batch_size` …;
                and `include_path`, a folder with tasks of one's own.

        Raises:
            UserError: the harness is not installed, or does not know a task or an option.
        """
        from hf_peft_recipes import harness

        harness.require_harness()
        recipe = self.recipe(overrides).resolved
        from hf_peft_recipes.upstream_noise import quiet

        with quiet():
            return harness.evaluate_tasks(self.folder, recipe, self.record, tasks, options, with_base)

    def certify(self) -> dict[str, Any]:
        """Return the verdict of a fresh process that loads what the run wrote: `{status, checks, figures}`."""
        return certify(self.folder)

    def push_to_hub(self, repo_id: str, **options: Any) -> dict[str, Any]:
        """Publish the run; return `{url, commit, files, certificate, …}`, which its record holds from then on.

        Args:
            repo_id: `user/name`.
            options: fields of `hf_peft_recipes.PushRequest`: `private`, `revision`, `create_pr`, `tag`,
                `base_model`, `push_base`.

        Raises:
            UserError: no token, no permission, a local base that nobody has named.
            HubError: it did not go up; the message holds the command that goes on.
            CertificateError: what was published does not load as what was trained.
        """
        from hf_peft_recipes.upstream_noise import quiet

        with quiet():
            from hf_peft_recipes.hub.publishing import push
            from hf_peft_recipes.hub.request import PushRequest

            return push(self.folder, PushRequest(repo_id, **options))

    def merge(
        self,
        folder: str | Path,
        into: str | None = None,
        *,
        adapters: Sequence[str | Path] = (),
        weights: Sequence[float] | None = None,
        combination: Mapping[str, Any] | None = None,
        max_shard_size: int | str = "50GB",
        overwrite: bool = False,
        gguf: bool = False,
        outtype: str | None = None,
        progress: bool = True,
        overrides: "Sequence[Override]" = (),
    ) -> "MergeResult":
        """Merge the run's adapter into its base, write a model that plain transformers loads; return the figures.

        Args:
            folder: the merged model's: new, empty, or with `overwrite` that of an earlier merge.
            into: `bf16` (the base unquantised), `dequantized` (the quantised base made whole again) or `requantized`
                (quantised again after the merge); by default the one nearest to the unmerged model.
            adapters: folders of further adapters on the same base, to be combined with the run's.
            weights: one an adapter, the run's own first; by default equal shares.
            combination: further arguments of PEFT's `add_weighted_adapter`, `{"combination_type": "ties", "density":
                0.5}`; by default `cat`, the exact weighted sum.
            max_shard_size: of a file of weights, as `save_pretrained` takes it.
            overwrite: replace the merge that the folder holds.
            gguf: convert with llama.cpp's converter too.
            outtype: of the GGUF file, in the converter's words.
            progress: say on standard error what is being done.
            overrides: of the run's recipe: where base and data lie now, how many rows are scored.

        Raises:
            UserError: a mistake in what was asked; nothing has been written then.
            RecipeError: the converter failed; the merged model has been written.
        """
        recipe = self.recipe(overrides).resolved
        from hf_peft_recipes.upstream_noise import quiet

        with quiet():
            from hf_peft_recipes import merging

            combined = {"combination_type": "cat", **(combination or {})} if adapters or combination else {}
            request = merging.MergeRequest(
                self.folder, Path(folder).expanduser(), into, [Path(path).expanduser() for path in adapters], weights,
                combined, max_shard_size, overwrite, gguf, outtype,
                own_data=not any(override.name.startswith(("data", "columns", "format")) for override in overrides),
                say=_say if progress else lambda _: None,
            )  # fmt: skip
            return MergeResult(request.target, merging.merge(recipe, self.record, request))

    def __str__(self) -> str:
        from io import StringIO

        from rich.console import Console

        from hf_peft_recipes.report.table import run_table

        text = StringIO()
        Console(file=text, width=120).print(run_table(self.record))
        return text.getvalue()


@dataclass(frozen=True)
class MergeResult:
    """A merged model, as plain transformers loads it."""

    folder: Path
    record: dict[str, Any]
    """As it stands in `merge.json`: what was merged into what, the figures of every variant, the files."""

    @property
    def into(self) -> str:
        """The variant that was kept."""
        return str(self.record["into"])

    @property
    def variants(self) -> dict[str, dict[str, Any]]:
        """Name of a variant to its figures: `divergence` from the unmerged model, `metrics`, `size_bytes`."""
        return dict(self.record["variants"])

    def __str__(self) -> str:
        from io import StringIO

        from rich.console import Console

        from hf_peft_recipes.report.table import merge_table

        text = StringIO()
        Console(file=text, width=120).print(merge_table(self.record, str(self.folder)))
        return text.getvalue()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
