"""The whole line for one call: references in, a merged folder out."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lwmm_hub.card import redact
from lwmm_hub.checkpoint import SIDE_FILES, Checkpoint, LocalFile
from lwmm_hub.display import one_line
from lwmm_hub.errors import RecipeError, UsageError
from lwmm_hub.keywords import fields_of
from lwmm_hub.licenses import LicenseDecision, license_file
from lwmm_hub.lineage import lineage_of
from lwmm_hub.manifest import decide_license, make_manifest, write_card
from lwmm_hub.merge_result import MergeResult
from lwmm_hub.merging import Progress
from lwmm_hub.planning import MergeOptions, MergePlan, plan_merge, written_bytes
from lwmm_hub.preparing import (
    Opened,
    Reference,
    Weights,
    decide,
    models_of,
    open_models,
    options_of,
    references_of,
    require_unchanged,
    table_of,
    warnings_of,
)
from lwmm_hub.recipe import recipe_of, write_recipe
from lwmm_hub.reference import ModelReference
from lwmm_hub.resolving import resolve
from lwmm_hub.weight_table import WeightTable
from lwmm_hub.writing import (
    MANIFEST,
    RECIPE,
    check_output,
    copy_side_files,
    publish_folder,
    read_beside,
    sha256_of,
    start_sync,
    temporary_folder,
    write_json,
    write_text,
    write_weights,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from lwmm_hub.options import OptionFields

Approval = Callable[[MergePlan], None]

LONGEST_TEXT, MOST_TEXTS = 1 << 20, 8 << 20  # bytes of one licence text, and of all of a merge
_LEFT_OUT = "This text is too long to be copied here. Read it where the model is."
_NO_TEXT = "This is no plain text, so it is not copied here. Read it where the model is."


@fields_of(MergeOptions)
def plan(
    anchor: Reference,
    *donors: Reference,
    check_weights: bool = False,
    weights: Weights | None = None,
    **options: Unpack[OptionFields],
) -> MergePlan:
    """Plan a merge from configs and headers; nothing is downloaded whole or written.

    With `match="values"` the weights that no name matches are read, and so downloaded.

    Args:
        anchor: the model whose task, head and format the result keeps.
        *donors: the models merged into it.
        check_weights: also read the sample that decides about relatedness and scope.
        weights: layer weights in numbers instead of a schedule: layer -> weights, the anchor's
            first; or a file with such a table.
        **options: fields of `MergeOptions`, which says what each does: the ramp (`schedule`, which
            is `linear`, `cosine`, `step`, `harmonic` or `isotropic`; `start`, `end`, `gamma`,
            `endpoint`, `anchor_weight`), what merges (`batch_norm`, `scope`, `match`,
            `allow_unrelated`, `allow_nonfinite`), and how it is stored (`dtype`,
            `max_shard_size`, `output_format`).

    Raises:
        LwmmError: see the tree in `lwmm_hub.errors`.
    """
    references = references_of(anchor, donors)
    table = table_of(weights)
    asked = options_of(options, table)
    opened = open_models(references, asked, download=False, look=check_weights)
    opened = replace(opened, table=table)
    if check_weights:
        return decide(opened)
    return plan_merge(
        opened.key_map,
        opened.checkpoints,
        opened.options,
        warnings=warnings_of(opened),
        lineage=lineage_of(opened.key_map, opened.checkpoints),
        table=opened.table,
    )


@fields_of(MergeOptions)
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
    **options: Unpack[OptionFields],
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
        **options: as for `plan`.

    Raises:
        LwmmError: see the tree in `lwmm_hub.errors`.
    """
    started = time.monotonic()
    folder = output_folder(output)
    if isinstance(anchor, MergePlan):
        if donors or options or weights is not None:
            raise UsageError(
                "a plan holds its models and options: pass it alone, or plan anew with others."
            )
        models, merge_options, kept = models_of(anchor), anchor.options, None
        table = anchor.table
        if anchor.scope_decided:
            kept = tuple(model.kept_parts for model in anchor.models)
    else:
        table = table_of(weights)
        models, kept = references_of(anchor, donors), None
        merge_options = options_of(options, table)
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


def output_folder(output: str | os.PathLike[str]) -> Path:
    """The folder to write; a link to a folder stays a link, and what it leads to is replaced."""
    path = Path(output).expanduser()
    try:
        return Path(os.path.realpath(path)) if path.is_symlink() else path
    except OSError:  # no name that a file can have; what that is, is said where it is written
        return path


def run_merge(
    models: Sequence[ModelReference],
    options: MergeOptions,
    *,
    kept_parts: tuple[tuple[str, ...], ...] | None,
    output: Path,
    started: float,
    overwrite: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
    tags: Sequence[str] = (),
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
        started: `time.monotonic()` of the call.
        overwrite: replace an earlier merge of that name.
        threads: workers.
        progress: called with the bytes made since the last call.
        tags: more tags for the card.
        approve: called with the plan before anything is downloaded whole or written.
        made: the plan that this must turn out to be.
        pairs_sha256: what values must match, as a checksum.
        table: layer weights in numbers.
    """
    if threads is not None and (not isinstance(threads, int) or threads < 1):
        raise UsageError(f"threads is {threads!r}: give a number from 1 on.")
    if isinstance(tags, str):
        raise UsageError(f"tags is {tags!r}: give a list of texts.")
    opened = open_models(models, options, download=False, pairs_sha256=pairs_sha256)
    opened = replace(opened, table=table)
    inputs = [Path(m.location) for m in models if not m.on_hub]
    inputs += [
        r.path for c in opened.checkpoints for r in c.readers.values() if isinstance(r, LocalFile)
    ]
    check_output(output, overwrite, inputs, written_bytes(opened.checkpoints[0], options))
    if any(m.on_hub for m in models):  # what can be refused, is refused before the download
        draft = plan_merge(
            opened.key_map, opened.checkpoints, options, kept_parts=kept_parts, table=table
        )
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
        plan = _with_warnings(plan, made)
    anchor = opened.checkpoints[0]
    with temporary_folder(output) as folder:
        written = write_weights(folder, plan, opened.checkpoints, threads, progress)
        require_unchanged(opened.checkpoints)
        synced = start_sync([folder / file.name for file in written])
        copy_side_files(folder, anchor, plan)
        decision = decide_license(plan)
        _write_licenses(folder, opened.checkpoints, decision)
        recipe = recipe_of(plan, public=False, folder=output.absolute())
        write_text(folder / RECIPE, write_recipe(recipe, _made_by()))
        seconds = time.monotonic() - started
        manifest = make_manifest(plan, anchor, output.name, written, decision, seconds, tags)
        manifest["output"]["beside"] = _checksums(folder, (*SIDE_FILES, "LICENSE"))
        write_json(folder / MANIFEST, manifest)
        write_card(folder, manifest)
        synced()
        publish_folder(folder, output, overwrite)
    return MergeResult(
        output.absolute(),
        plan,
        {file.name: file.sha256 for file in written},
        time.monotonic() - started,
        sum(file.bytes for file in written),
        decision,
        str(output),
    )


def _checksums(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """sha256 of those files that are there."""
    return {name: sha256_of(folder / name) for name in names if (folder / name).is_file()}


def _require_same(made: MergePlan, decided: MergePlan, opened: Opened) -> None:
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


def _with_warnings(plan: MergePlan, made: MergePlan) -> MergePlan:
    """The plan as it runs with what only the given one has to say, such as how a fit ended.

    A plan whose weights were not read yet has nothing of that kind, and warnings that no longer
    hold.
    """
    said = made.warnings if made.scope_decided else ()
    return replace(plan, warnings=tuple(dict.fromkeys((*said, *plan.warnings))))


def _made_by() -> str:
    from lwmm_hub import __version__

    return f"lwmm-hub {__version__}"


def _write_licenses(
    folder: Path, checkpoints: Sequence[Checkpoint], decision: LicenseDecision
) -> None:
    """The parents' licence texts and notices, and who is owed one."""
    texts: dict[str, str] = {}
    room = MOST_TEXTS
    for checkpoint in checkpoints:
        source = checkpoint.folder
        if source is None:
            continue
        for name in checkpoint.facts.license_files:
            path = source / name  # one of absurd length was not downloaded
            size = path.stat().st_size if path.is_file() else LONGEST_TEXT
            text = _LEFT_OUT
            if size < min(LONGEST_TEXT, room):
                room -= size
                text = _plain(read_beside(source, name, checkpoint.label, follow=True))
            texts[redact(f"{checkpoint.label} ({one_line(name.replace('../', ''))})")] = text
    owed = license_file(decision, texts)
    if owed is not None:
        write_text(folder / "LICENSE", owed)


def _plain(content: bytes) -> str:
    """A licence's text in whatever letters it is written."""
    for start, encoding in ((b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"), (b"", "utf-8-sig")):
        if content.startswith(start):
            try:
                return content.decode(encoding)
            except UnicodeDecodeError:
                continue
    return _NO_TEXT if b"\0" in content else content.decode("cp1252", "replace")
