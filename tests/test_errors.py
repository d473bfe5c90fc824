"""Messages name options of the command line, and in Python what those are called there."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from dataclasses import fields
from operator import attrgetter
from pathlib import Path

import click
import pytest
from clients import assert_one_line
from enumerators import TINY, ancestor, finetuned, write_transformers_folder

import lwmm_hub as lw
import lwmm_hub.fitting
from lwmm_hub.cli.commands import cli
from lwmm_hub.errors import PYTHON, LwmmError, OutputError, RecipeError, in_python
from lwmm_hub.evaluation.opening import open_data

SOURCE = Path(lw.__file__).parent
# what the functions of `lwmm_hub` have no argument for
COMMAND_LINE_ALONE = {
    "--controls", "--format", "--json", "--overlay", "--plot", "--save-to", "--shard",
}  # fmt: skip
OF_HF = {"--local-dir"}
OPTION = re.compile(r"(?<![\w-])(?:--[a-z]+(?:-[a-z]+)*|-o\b)")


def options_of_the_command_line() -> set[str]:
    return {
        text
        for command in cli.commands.values()
        for parameter in command.params
        if isinstance(parameter, click.Option)
        for text in (*parameter.opts, *parameter.secondary_opts)
    }


def arguments() -> set[str]:
    functions = (
        lw.plan, lw.merge, lw.merge_recipe, lw.verify, lw.convert, lw.evaluate, open_data,
        lw.publish, lw.MergeResult.push_to_hub,
    )  # fmt: skip
    found = {name for function in functions for name in inspect.signature(function).parameters}
    return found | {field.name for field in fields(lw.MergeOptions)}


def texts(path: Path) -> Iterator[str]:
    """The texts of a module that are not its docstrings."""
    tree = ast.parse(path.read_text("utf-8"))
    alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in alone:
            yield node.value


def test_every_option_in_a_message_is_one_and_has_its_name_in_python() -> None:
    named: dict[str, Path] = {}
    for path in SOURCE.rglob("*.py"):
        if path.is_relative_to(SOURCE / "cli") or path == SOURCE / "errors.py":
            continue
        for text in texts(path):
            named |= dict.fromkeys(OPTION.findall(text), path)
    assert named.keys() - OF_HF <= options_of_the_command_line()
    assert named.keys() - OF_HF == {key for key in PYTHON if " " not in key} | COMMAND_LINE_ALONE


@pytest.mark.parametrize(("option", "name"), PYTHON.items())
def test_what_it_is_called_in_python_is_there(option: str, name: str) -> None:
    assert option.partition(" ")[0] in options_of_the_command_line()
    if name.startswith("lw."):
        assert callable(attrgetter(name.removeprefix("lw."))(lw))
    else:
        assert name in arguments()
    assert in_python(f"Try {option}, then look.").endswith(f"look. (In Python: {name}.)")


@pytest.mark.parametrize(
    "text",
    [
        "Choose another folder.",
        "Type 'lwmm-hub convert a b --to transformers' there.",
        "Get it with 'hf download a/b --local-dir DIR' and give DIR.",
        "Leave --controls out.",
        "the well-known --overwriting of x--overwrite",
    ],
)
def test_nothing_is_added_where_there_is_nothing_to_say(text: str) -> None:
    assert in_python(text) == text == str(LwmmError(text)) == LwmmError(text).text


def test_a_message_within_a_message_is_told_once_and_at_the_end() -> None:
    inner = OutputError("x exists already. Pass --overwrite.")
    outer = RecipeError(f"line 3: {inner} Or leave --dtype out.")
    assert outer.text == "line 3: x exists already. Pass --overwrite. Or leave --dtype out."
    assert str(outer) == f"{outer.text} (In Python: overwrite, dtype.)"


def test_a_notebook_is_told_the_argument_and_a_terminal_the_option(tmp_path: Path, lwmm) -> None:
    anchor, donor = (
        write_transformers_folder(tmp_path / name, finetuned(ancestor(TINY, 0), seed), TINY)
        for seed, name in enumerate("ab", start=1)
    )
    lw.merge(anchor, donor, output="m")
    with pytest.raises(OutputError) as refused:
        lw.merge(anchor, donor, output="m")
    assert str(refused.value).endswith("another folder with -o. (In Python: overwrite, output.)")
    terminal = lwmm("merge", anchor, donor, "-o", "m")
    assert_one_line(terminal, "Pass --overwrite to replace it", code=1)
    assert "Python" not in terminal.err
    plan = lw.plan(anchor, donor, weights={"stages": (0.5, 0.5)})
    assert plan.warnings[0].endswith("--scope backbone.")
    assert "with --scope backbone. (In Python: scope.)</li>" in plan._repr_html_()
