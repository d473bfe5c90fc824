"""`lwmm-hub convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lwmm_hub.cli.options import Command, paths, values, with_output
from lwmm_hub.cli.output import Output


@click.command(cls=Command)
@click.argument("model", metavar="IN", shell_complete=paths)
@click.argument("target", metavar="OUT", shell_complete=paths)
@click.option(
    "--to",
    type=click.Choice(("own", "transformers")),
    default="own",
    show_default=True,
    help="Whose keys: its own, or those of a class of transformers.",
)
@click.option(
    "--config",
    metavar="FILE",
    shell_complete=paths,
    help="What weights do not show, as in a config.json (heads, labels).",
)
@click.option(
    "--dtype",
    default="auto",
    show_default=True,
    metavar="DTYPE",
    shell_complete=values,
    help="Of the result: auto (as it is), float32, float16 or bfloat16.",
)
@click.option("--max-shard-size", default="5GB", show_default=True, metavar="SIZE",
              help="Largest weight file of a folder.")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace an earlier result of that name.")
@with_output
def convert(model: str, target: str, output: Output, **options: Any) -> None:
    """Write a checkpoint as safetensors or as a transformers model.

    IN is anything that can be merged. OUT is a folder, or NAME.safetensors.
    """
    from lwmm_hub.converting import convert as run_convert
    from lwmm_hub.display import one_line, tab_row

    path = Path(model)
    size = path.stat().st_size if path.is_file() else 0
    with output.progress("converting") as bar:
        bar.expect(size)
        result = run_convert(model, target, progress=bar, **options)
    output.warnings(result.warnings)
    data = result.to_dict()

    def rows() -> list[str]:
        names = ("output", "class", "tensors", "split", "seconds", "bytes_written")
        found = [tab_row(name, data[name]) for name in names]
        for table in ("left_out", "config_from", "sha256"):
            found += [tab_row(table, name, value) for name, value in data[table].items()]
        return found

    def human() -> str:
        return "\n".join(map(one_line, str(result).splitlines()))

    output.result(data, human, rows, quiet=str(result.path))
