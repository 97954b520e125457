"""What a Python user holds: recipes by name, and the results of their runs."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_peft_recipes import registry
from hf_peft_recipes.device import Device, detect_device, named_device
from hf_peft_recipes.spec import Override, ResolvedRecipe, compose, recipe_file, resolve, shown

# Rooms that only a run needs are imported where it begins: `list` and `show` are to be instant.
if TYPE_CHECKING:
    from hf_peft_recipes.hub.request import PushRequest
    from hf_peft_recipes.preflight import RunRequest

_OBJECTS = ("tokenizer", "callbacks")


def list_recipes(pattern: str = "*") -> list[str]:
    """Return the sorted names of the recipes that match a shell pattern."""
    return registry.list_names(pattern)


def get_recipe(name: str, *, device: Device | str | None = None, exact: bool = False, **overrides: Any) -> "Recipe":
    """Return the recipe `name`, resolved for a device, every key checked. Nothing is loaded.

    Args:
        name: a registered name, names joined by `+`, or the path of a YAML file.
        device: for which the recipe's rules choose; None for this machine's.
        exact: keep what the `recipe.yaml` of an earlier run took for its device.
        overrides: fields by name, `learning_rate=1e-4`, or sections, `data={"columns": {"prompt": "question"}}`.
            `model` and `dataset` may be objects: a loaded model, a `datasets.Dataset` or rows; so may `tokenizer`;
            `callbacks` is a list of transformers' callbacks.

    Raises:
        UserError: an unknown name or key, or a value that its field cannot take.
    """
    objects = {key: overrides.pop(key) for key in _OBJECTS if key in overrides}
    if not isinstance(overrides.get("model"), (str, Path, Mapping, type(None))):
        objects["model"] = overrides.pop("model")
    if not _is_name(overrides.get("dataset")):
        objects["dataset"] = overrides.pop("dataset")
    given = [Override(key, _without_paths(value), f"keyword {key}") for key, value in overrides.items()]
    return resolve_recipe(name, given, device, exact, objects)


def resolve_recipe(
    name: str,
    overrides: Sequence[Override],
    device: Device | str | None = None,
    exact: bool = False,
    objects: Mapping[str, Any] | None = None,
) -> "Recipe":
    """Return the recipe `name` under overrides that know where they came from; see `get_recipe`."""
    if device is None:
        device = detect_device()
    elif isinstance(device, str):
        device = named_device(device)
    composition, given = compose(name, _lookup, exact), tuple(overrides)

    def decide(demo: bool) -> ResolvedRecipe:
        return resolve(composition, given, {**device.facts(), "run.demo": demo})

    return Recipe(decide(False), dict(objects or {}), decide)


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
class Recipe:
    """A recipe that is decided to the last value, and can be run."""

    resolved: ResolvedRecipe
    objects: Mapping[str, Any]
    """What the caller passed in place of names: model, tokenizer, dataset, callbacks."""
    decide: Callable[[bool], ResolvedRecipe] = field(repr=False, compare=False)
    """Resolves the recipe anew, for the embedded demo or not."""

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
        examined = examine(resolved, request)
        from hf_peft_recipes.upstream_noise import quiet

        with quiet():
            from hf_peft_recipes.assembly import prepare

            return prepare(resolved, request, examined).trainer

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
        progress: bool = True,
        command: str | None = None,
        publication: "PushRequest | None" = None,
    ) -> "RunResult":
        """Train, evaluate before and after, save; return the run's result.

        Args:
            output_dir: the run's folder; by default a new one below `runs/`.
            overwrite: replace the run that the folder holds.
            resume: go on from the folder's last checkpoint.
            dry_run: load everything, run one step, write nothing.
            progress: show how far it is.
            command: what started the run, for its record.
            publication: where the run goes on the Hub when it is done.

        Raises:
            UserError: a mistake in what was asked; nothing has been written then.
            LaunchError: other processes came up than were asked for.
            NotTrainedError: the run stopped itself because tensors did not train.
            CertificateError: what was saved does not load as what was trained.
            HubError: the run is done, its folder whole, and it could not be published.
        """
        from hf_peft_recipes.preflight import examine

        told = command or f"hf_peft_recipes.get_recipe({self.name!r}, …).train()"
        request = self._request(
            output_dir, told, overwrite=overwrite, resume=resume, dry_run=dry_run, progress=progress
        )
        resolved = self._for_run()
        examined = examine(resolved, request)
        from hf_peft_recipes.upstream_noise import quiet

        with quiet():
            # Imported once the cheap checks are through: it brings torch and everything else along.
            from hf_peft_recipes.runner import run

            record = run(resolved, request, examined, publication)
        return RunResult(examined.output_dir, record)

    def _for_run(self) -> ResolvedRecipe:
        """Return the recipe for training: with neither model nor data, that of the embedded demo."""
        from hf_peft_recipes.lineage import continued

        named = [self.resolved.value("model.name_or_path"), self.resolved.value("data.dataset")]
        given = [self.objects.get("model"), self.objects.get("dataset")]
        return continued(self.decide(all(value is None for value in [*named, *given])))

    def _request(self, output_dir: str | Path | None, command: str, **options: Any) -> "RunRequest":
        from hf_peft_recipes.preflight import RunRequest

        folder = None if output_dir is None else Path(output_dir).expanduser()
        return RunRequest(output_dir=folder, command=command, **options, **self.objects)


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
        """`done`, `failed` or `dry_run`."""
        return str(self.record["status"])

    @property
    def metrics(self) -> dict[str, Any]:
        """`before` and `after`: metric names to values; `intervals` beside them."""
        return dict(self.record["metrics"])

    @property
    def measured(self) -> dict[str, Any]:
        """`peak_memory_bytes`, `tokens_per_second`, `step_seconds` and more."""
        return dict(self.record["measured"])

    def recipe(self) -> Recipe:
        """Return the recipe of the run, exactly as it ran."""
        from hf_peft_recipes.results import RECIPE_FILE

        return resolve_recipe(str(self.folder / RECIPE_FILE), [], exact=True)

    def load(self) -> Any:
        """Return the trained model with its tokenizer and stop ids, see `hf_peft_recipes.trained.TrainedModel`."""
        resolved = self.recipe().resolved
        from hf_peft_recipes.upstream_noise import quiet

        with quiet():
            from hf_peft_recipes import trained

            return trained.load(self.folder, resolved, self.record)

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
        overrides: Sequence[Override] = (),
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
        from hf_peft_recipes.results import RECIPE_FILE

        recipe = resolve_recipe(str(self.folder / RECIPE_FILE), overrides, exact=True).resolved
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
        Console(file=text, width=110).print(run_table(self.record))
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
        Console(file=text, width=110).print(merge_table(self.record, str(self.folder)))
        return text.getvalue()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _is_name(dataset: Any) -> bool:
    """Whether a data set is given by its name, or several by theirs."""
    names = dataset if isinstance(dataset, list) and dataset else [dataset]
    return all(isinstance(name, (str, Path, type(None))) for name in names)


def _without_paths(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_paths(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _lookup(name: str) -> tuple[str, str, str | Mapping[str, Any]]:
    source = registry.find(name)
    return source.name, source.origin, source.read()
