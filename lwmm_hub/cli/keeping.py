"""A merge on its way to the Hub lies in a temporary folder: where its push fails, it is kept."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

from lwmm_hub import __version__
from lwmm_hub.errors import LwmmError, PublishError

_KEEP = ".keep"


def kept_merge(error: Exception, folder: Path, repo: str) -> LwmmError:
    """The error of a push, after its merge was saved from the temporary folder it lies in."""
    from lwmm_hub.publishing import KEPT
    from lwmm_hub.recipe import moved_recipe, read_recipe, write_recipe
    from lwmm_hub.writing import RECIPE, write_text

    stem = f"merged-{repo.rpartition('/')[2]}"
    names = (Path(stem if number == 1 else f"{stem}-{number}") for number in itertools.count(1))
    kept = next(path for path in names if not path.exists())
    try:
        recipe = moved_recipe(read_recipe(folder / RECIPE), kept.absolute())
        shutil.copytree(folder, kept)
        write_text(kept / RECIPE, write_recipe(recipe, f"lwmm-hub {__version__}"))
    except OSError:  # no room or no right to write here: then it stays where it is
        shutil.rmtree(kept, ignore_errors=True)
        (folder.parent / _KEEP).touch()
        kept = folder
    kind = type(error) if isinstance(error, LwmmError) else PublishError
    said = str(error).partition(f" {KEPT}")[0]
    return kind(
        f"{said} The merged folder is kept as {kept}: push it with 'lwmm-hub push {kept} {repo}'."
    )


def left_behind(scratch: Path) -> bool:
    """Whether a temporary folder holds a merge that could be saved nowhere else."""
    return (scratch / _KEEP).exists()
