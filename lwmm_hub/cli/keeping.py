"""A merge that is only on its way to the Hub: in a temporary folder, saved where the push fails."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from pathlib import Path
from shlex import quote

from lwmm_hub import __version__
from lwmm_hub.errors import LwmmError, PublishError

_KEEP = ".keep"


def new_scratch() -> Path:
    """A temporary folder to merge below."""
    return Path(tempfile.mkdtemp(prefix="lwmm-"))


def clear_scratch(scratch: Path) -> None:
    """Remove it, unless it holds a merge that could be saved nowhere else."""
    if not (scratch / _KEEP).exists():
        shutil.rmtree(scratch, ignore_errors=True)


def saved(error: Exception, folder: Path, repo: str) -> LwmmError:
    """The error of a push, after its merge was saved from the temporary folder it lies in."""
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
    text = error.text if isinstance(error, LwmmError) else str(error)
    said = text.partition(f" The merged folder is kept: {folder}")[0]
    return kind(
        f"{said} The merged folder is kept as {kept}: push it with "
        f"'lwmm-hub push {quote(str(kept))} {repo}'."
    )
