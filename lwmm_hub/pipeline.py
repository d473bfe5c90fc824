"""The whole line for one call: references in, a merged folder out."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lwmm_hub.checkpoint import Checkpoint, LocalFile
from lwmm_hub.errors import RecipeError, UsageError, VerificationError
from lwmm_hub.inferring import match_by
from lwmm_hub.key_map import KeyMap, leave_out
from lwmm_hub.licenses import LicenseDecision, license_file
from lwmm_hub.lineage import lineage_of
from lwmm_hub.manifest import decide_license, make_manifest, write_card
from lwmm_hub.matching import same_model_warnings, with_distinct_labels
from lwmm_hub.merging import Progress
from lwmm_hub.planning import MergeOptions, MergePlan, plan_merge, written_bytes
from lwmm_hub.recipe import recipe_of, write_recipe
from lwmm_hub.reference import ModelReference
from lwmm_hub.relatedness import measure_relatedness, require_related
from lwmm_hub.resolving import resolve
from lwmm_hub.schedule import TABLE
from lwmm_hub.untrained import find_untrained, untrained_warnings
from lwmm_hub.weight_table import WeightTable, read_weights
from lwmm_hub.writing import (
    MANIFEST,
    RECIPE,
    check_output,
    copy_side_files,
    publish_folder,
    read_beside,
    start_sync,
    temporary_folder,
    write_json,
    write_text,
    write_weights,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Reference = str | os.PathLike[str] | ModelReference
Weights = WeightTable | Mapping[str, Sequence[float]] | str | os.PathLike[str]
Approval = Callable[[MergePlan], None]


@dataclass(frozen=True)
class MergeResult:
    """A merged folder.

    Attributes:
        folder: where it is.
        plan: the plan as it ran.
        files: weight file -> sha256.
        seconds: wall time of the whole merge.
        bytes_written: of weights.
        license: the licence it must carry.
        commit_url: of the push, if it was pushed.
    """

    folder: Path
    plan: MergePlan
    files: Mapping[str, str]
    seconds: float
    bytes_written: int
    license: LicenseDecision
    commit_url: str | None = None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know."""
        return self.plan.warnings

    def load(self, **options: Any) -> PreTrainedModel:
        """The merged model, loaded by the transformers class that its config names.

        Args:
            **options: passed to `from_pretrained`.

        Raises:
            OutputError: the folder has no config, or keys are missing or left over.
        """
        from lwmm_hub.loading import load_model

        return load_model(self.folder, **options)

    def push_to_hub(
        self,
        repo: str,
        *,
        private: bool | None = None,
        create_pr: bool = False,
        accept_license: bool = False,
        license: str | None = None,
        token: str | None = None,
        message: str | None = None,
    ) -> str:
        """Push the folder in one commit; returns the URL of the commit (or pull request).

        Raises:
            LicenseRefusedError: a licence rule refuses a public target.
            PublishError: the Hub did not take it.
        """
        from lwmm_hub.publishing import publish

        return publish(
            self.folder,
            repo,
            private=private,
            create_pr=create_pr,
            accept_license=accept_license,
            license=license,
            token=token,
            message=message,
        )

    def to_dict(self) -> dict[str, Any]:
        """What `lwmm-hub merge --json` prints."""
        return {
            "output": str(self.folder),
            "merged": len(self.plan.merged),
            "kept": len(self.plan.kept),
            "seconds": round(self.seconds, 3),
            "bytes_written": self.bytes_written,
            "sha256": dict(self.files),
            "commit_url": self.commit_url,
            "warnings": list(self.plan.warnings),
        }

    def __str__(self) -> str:
        return (
            f"{self.folder}: {len(self.plan.merged)} parameters merged, "
            f"{len(self.plan.kept)} kept from the anchor, {self.seconds:.1f} s"
        )


@dataclass(frozen=True)
class _Opened:
    """Models that were resolved and matched, before their weights are read."""

    checkpoints: tuple[Checkpoint, ...]
    key_map: KeyMap
    options: MergeOptions
    kept_parts: tuple[tuple[str, ...], ...] | None = None
    notes: tuple[str, ...] = ()
    pairs_sha256: str | None = None
    table: WeightTable | None = None


def plan(
    anchor: Reference,
    *donors: Reference,
    check_weights: bool = False,
    weights: Weights | None = None,
    **options: Any,
) -> MergePlan:
    """Plan a merge from configs and headers; nothing is downloaded whole or written.

    With `match="values"` the weights that no name matches are read, and so downloaded.

    Args:
        anchor: the model whose task, head and format the result keeps.
        *donors: the models merged into it.
        check_weights: also read the sample that decides about relatedness and scope.
        weights: layer weights in numbers instead of a schedule: layer -> weights, the anchor's
            first; or a file with such a table.
        **options: fields of `MergeOptions`.

    Raises:
        LwmmError: see the tree in `lwmm_hub.errors`.
    """
    references = _references(anchor, donors)
    table = _table(weights, options)
    opened = open_models(references, _options(options), download=False, look=check_weights)
    opened = replace(opened, table=table)
    if check_weights:
        return decide(opened)
    return plan_merge(
        opened.key_map,
        opened.checkpoints,
        opened.options,
        warnings=_warnings(opened),
        lineage=lineage_of(opened.key_map, opened.checkpoints),
        table=opened.table,
    )


def merge(
    anchor: Reference | MergePlan,
    *donors: Reference,
    output: str | os.PathLike[str] = "merged",
    overwrite: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
    tags: Sequence[str] = (),
    weights: Weights | None = None,
    approve: Approval | None = None,
    **options: Any,
) -> MergeResult:
    """Merge models, layer by layer, into a folder that loads like the anchor's.

    Args:
        anchor: the model whose task, head and format the result keeps; or a plan, which is run.
        *donors: the models merged into it.
        output: the folder; it appears whole or not at all.
        overwrite: replace an earlier merge of that name.
        threads: workers; the result does not depend on it.
        progress: called with the bytes made since the last call.
        tags: more tags for the card.
        weights: layer weights in numbers instead of a schedule, as `plan` takes them.
        approve: called with the plan before anything is downloaded whole or written; may raise.
        **options: fields of `MergeOptions`.

    Raises:
        LwmmError: see the tree in `lwmm_hub.errors`.
    """
    started = time.monotonic()
    folder = output_folder(output)
    if isinstance(anchor, MergePlan):
        if donors or options or weights is not None:
            raise UsageError("a plan holds its models and options: pass the plan alone.")
        models, merge_options, kept = _models_of(anchor), anchor.options, None
        table = anchor.table
        if anchor.scope_decided:
            kept = tuple(model.kept_parts for model in anchor.models)
    else:
        table = _table(weights, options)
        models, merge_options, kept = _references(anchor, donors), _options(options), None
    return run_merge(
        models,
        merge_options,
        kept_parts=kept,
        output=folder,
        overwrite=overwrite,
        threads=threads,
        progress=progress,
        tags=tags,
        started=started,
        made=anchor if isinstance(anchor, MergePlan) else None,
        table=table,
        approve=approve,
    )


def _table(weights: Weights | None, options: dict[str, Any]) -> WeightTable | None:
    """The table that is asked for; `options` then say so."""
    if weights is None:
        return None
    options.setdefault("schedule", TABLE)
    if isinstance(weights, WeightTable):
        return weights
    if isinstance(weights, Mapping):
        rows = {str(layer): tuple(map(float, row)) for layer, row in weights.items()}
        return WeightTable(rows, {"method": "table"})
    return read_weights(Path(weights))


def output_folder(output: str | os.PathLike[str]) -> Path:
    """The folder to write; a link to a folder stays a link, and what it leads to is replaced."""
    path = Path(output).expanduser()
    try:
        return Path(os.path.realpath(path)) if path.is_symlink() else path
    except OSError:  # no name that a file can have; what that is, is said where it is written
        return path


def _references(anchor: Reference, donors: Sequence[Reference]) -> list[ModelReference]:
    if not donors:
        raise UsageError("a merge needs an anchor and at least one donor: name two models.")
    return [
        model if isinstance(model, ModelReference) else ModelReference.parse(os.fspath(model))
        for model in (anchor, *donors)
    ]


def _models_of(plan: MergePlan) -> list[ModelReference]:
    """The plan's models, pinned to the commits that it was made from."""
    references = []
    for model in plan.models:
        text = model.reference if model.local else f"hf://{model.reference}"
        reference = ModelReference.parse(text)
        if model.commit is not None:
            reference = replace(reference, revision=model.commit)
        references.append(reference)
    return references


def _options(options: Mapping[str, Any]) -> MergeOptions:
    known = [f.name for f in fields(MergeOptions)]
    for name in options:
        if name not in known:
            raise UsageError(f"unknown option {name!r}. Known: {', '.join(known)}.")
    return MergeOptions(**options)


def open_models(
    models: Sequence[ModelReference],
    options: MergeOptions,
    download: bool,
    kept_parts: tuple[tuple[str, ...], ...] | None = None,
    pairs_sha256: str | None = None,
    look: bool = False,
) -> _Opened:
    """Resolve and match models; `look` says what `match="values"` would add."""
    options.check(len(models))
    download = download or options.match == "values"
    checkpoints = with_distinct_labels([resolve(m, download=download) for m in models])
    key_map, notes = match_by(options.match, checkpoints, look)
    return _Opened(checkpoints, key_map, options, kept_parts, notes, pairs_sha256)


def _warnings(opened: _Opened) -> tuple[str, ...]:
    own = [warning for c in opened.checkpoints for warning in c.warnings]
    return (*own, *same_model_warnings(opened.checkpoints), *opened.notes)


def decide(opened: _Opened) -> MergePlan:
    """Read the sample of weights, judge, and plan with the verdict."""
    untrained = find_untrained(opened.key_map, opened.checkpoints)
    key_map = opened.key_map
    if opened.options.scope == "auto":
        kept = opened.kept_parts
        key_map = leave_out(
            key_map,
            {
                (i, layer): why
                for (i, layer), why in untrained.items()
                if kept is None or layer in kept[i]
            },
        )
    results = measure_relatedness(key_map, opened.checkpoints)
    labels = [c.label for c in opened.checkpoints]
    related = require_related(results, labels, opened.options.allow_unrelated)
    plan = plan_merge(
        key_map,
        opened.checkpoints,
        opened.options,
        results,
        (*_warnings(opened), *related, *untrained_warnings(untrained, opened.options.scope)),
        opened.kept_parts,
        lineage_of(key_map, opened.checkpoints, results),
        opened.table,
    )
    if opened.pairs_sha256 not in (None, plan.pairs_sha256):
        raise VerificationError(
            "the values of these models match other tensors than when the recipe was written: one "
            "of them has changed. Give the originals, or merge anew with --match values."
        )
    return plan


def run_merge(
    models: Sequence[ModelReference],
    options: MergeOptions,
    *,
    kept_parts: tuple[tuple[str, ...], ...] | None,
    output: Path,
    overwrite: bool,
    threads: int | None,
    progress: Progress | None,
    tags: Sequence[str],
    started: float,
    approve: Approval | None = None,
    made: MergePlan | None = None,
    pairs_sha256: str | None = None,
    table: WeightTable | None = None,
) -> MergeResult:
    """The whole line for opened references; `merge` and `merge_recipe` are this with other inputs.

    Args:
        models: the parents, the anchor first.
        options: what is asked for.
        kept_parts: per model the parts that are kept out, where that is decided already.
        output: the folder.
        overwrite: replace an earlier merge of that name.
        threads: workers.
        progress: called with the bytes made since the last call.
        tags: more tags for the card.
        started: `time.monotonic()` of the call.
        approve: called with the plan before anything is downloaded whole or written.
        made: the plan that this must turn out to be.
        pairs_sha256: what values must match, as a checksum.
        table: layer weights in numbers.
    """
    if threads is not None and threads < 1:
        raise UsageError(f"threads is {threads}: give a number from 1 on.")
    opened = open_models(models, options, download=False, pairs_sha256=pairs_sha256)
    opened = replace(opened, table=table)
    inputs = [Path(m.location) for m in models if not m.on_hub]
    inputs += [
        r.path for c in opened.checkpoints for r in c.readers.values() if isinstance(r, LocalFile)
    ]
    check_output(output, overwrite, inputs, written_bytes(opened.checkpoints[0], options))
    if any(m.on_hub for m in models):  # what can be refused, is refused before the download
        draft = plan_merge(opened.key_map, opened.checkpoints, options, table=table)
        if approve is not None:
            approve(draft)
        pinned = [
            replace(c.reference, revision=c.commit or c.reference.revision)
            for c in opened.checkpoints
        ]
        full = [resolve(p, download=True) for p in pinned]
        same = [
            replace(
                c,
                reference=first.reference,
                name=first.name,
                warnings=tuple(dict.fromkeys((*first.warnings, *c.warnings))),
            )
            for c, first in zip(full, opened.checkpoints, strict=True)
        ]
        opened = replace(opened, checkpoints=tuple(same))  # same commits, so the same keys
    plan = decide(replace(opened, kept_parts=kept_parts))
    if approve is not None:
        approve(plan)
    if made is not None:
        _require_same(made, plan, opened)
    anchor = opened.checkpoints[0]
    with temporary_folder(output) as folder:
        written = write_weights(folder, plan, opened.checkpoints, threads, progress)
        synced = start_sync([folder / file.name for file in written])
        copy_side_files(folder, anchor, plan)
        decision = decide_license(plan)
        _write_licenses(folder, opened.checkpoints, decision)
        recipe = recipe_of(plan, public=False, folder=output.absolute())
        write_text(folder / RECIPE, write_recipe(recipe, _made_by()))
        seconds = time.monotonic() - started
        manifest = make_manifest(plan, anchor, output.name, written, decision, seconds, tags)
        write_json(folder / MANIFEST, manifest)
        write_card(folder, manifest)
        synced()
        publish_folder(folder, output, overwrite)
    return MergeResult(
        output,
        plan,
        {file.name: file.sha256 for file in written},
        time.monotonic() - started,
        sum(file.bytes for file in written),
        decision,
    )


def _require_same(made: MergePlan, decided: MergePlan, opened: _Opened) -> None:
    """Stop where a plan is not what its models and options give.

    Raises:
        RecipeError: the plan was changed, or a local model was.
    """
    plan = decided
    if not made.scope_decided:
        plan = plan_merge(opened.key_map, opened.checkpoints, opened.options, table=opened.table)
    if made.merged != plan.merged:
        raise RecipeError(
            "the plan is not what its models and options give: it was changed, or a local model "
            "was. Make it again with lw.plan(...)."
        )


def _made_by() -> str:
    from lwmm_hub import __version__

    return f"lwmm-hub {__version__}"


def _write_licenses(
    folder: Path, checkpoints: Sequence[Checkpoint], decision: LicenseDecision
) -> None:
    """The parents' licence texts, and a notice of who is owed one."""
    texts: dict[str, str] = {}
    for checkpoint in checkpoints:
        source = checkpoint.folder
        if source is None:
            continue
        for name in checkpoint.facts.license_files:
            path = source / name
            if path.is_file() and path.stat().st_size < 1 << 20:
                text = read_beside(path, checkpoint.label).decode("utf-8", "replace")
                texts[f"{checkpoint.label} ({path.name})"] = text
    owed = license_file(decision, texts)
    if owed is not None:
        write_text(folder / "LICENSE", owed)
