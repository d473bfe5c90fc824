"""What a notebook shows of our values: short, since each of them knows of every tensor."""

from __future__ import annotations

import ast
import dataclasses
import html
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stories import Models

import lwmm_hub as lw
from lwmm_hub.evaluation.opening import open_data
from lwmm_hub.fitting.options import FitOptions
from lwmm_hub.schedule import SCHEDULES

ROOT = Path(__file__).parents[1]
STREET = ROOT / "examples" / "street"


@pytest.fixture(scope="module")
def parents(tiny: Models) -> list[lw.Checkpoint]:
    return [lw.resolve(str(folder)) for folder in (tiny.anchor, tiny.donor)]


def test_what_stands_alone_in_a_cell_is_one_line(
    parents: list[lw.Checkpoint], tmp_path: Path
) -> None:
    key_map = lw.match(*parents)
    plan = lw.plan_merge(key_map, parents)
    result = lw.merge(plan, output=tmp_path / "m")
    merged, kept = len(plan.merged), len(plan.kept)
    counts = f"{merged} parameters merged, {kept} tensors kept from the anchor"
    assert repr(plan) == f"<MergePlan of 2 models, linear layer weights: {counts}>"
    assert repr(result).startswith(f"<MergeResult {tmp_path / 'm'}: {counts}, ")
    assert repr(key_map).startswith(f"<KeyMap of 2 models: {merged} parameters shared in backbone,")
    anchor = parents[0]
    assert repr(anchor) == (
        f"<Checkpoint {anchor.label}: {len(anchor.entries)} tensors in safetensors, "
        f"{anchor.parameters} parameters>"
    )
    for value in (plan, result, key_map, anchor):
        assert len(repr(value)) < 300
        assert "\n" not in repr(value)


def test_a_plan_says_in_a_notebook_what_it_says_in_a_terminal(tiny: Models) -> None:
    plan = lw.plan(tiny.anchor, tiny.donor)
    page = html.unescape(plan._repr_html_())
    text = str(plan)
    for line in ("The weights were not read yet", "Layers: ", "Cost: reads "):
        [told] = [found for found in text.splitlines() if found.startswith(line)]
        assert told in page
    counted = Counter(row["reason"] for row in plan.to_dict()["unused"])
    assert counted
    for why, count in counted.items():
        label = plan.models[1].label
        assert f">{count}</td><td style='text-align:left'>{label}: {why}</td>" in page
    for row in plan.to_dict()["kept"]:
        assert f"<td style='text-align:left'>{row['key']}" in page
    read = lw.plan(tiny.anchor, tiny.donor, check_weights=True)
    assert "The weights were not read yet" not in read._repr_html_()


def test_stages_are_called_what_options_and_the_terminal_call_them(tiny: Models) -> None:
    """Counted from one, the picture's second stage was the option's `stages.1`."""
    plan = lw.plan(tiny.anchor, tiny.donor, start="stages.1")
    drawn = re.findall(r">(stages?[ .]\d)</text>", plan._repr_html_())
    assert drawn == re.findall(r"(?m)^  (stages\S*) ", str(plan))
    assert drawn[1] == "stages.1"


def test_a_result_says_in_a_notebook_what_can_be_done_with_it(tiny: Models, tmp_path: Path) -> None:
    result = lw.merge(tiny.anchor, tiny.anchor, output=tmp_path / "m")
    page = html.unescape(result._repr_html_())
    assert " 1 tensor kept" in str(result)
    assert str(result) in page
    assert "<code>.load()</code>" in page
    assert result.warnings
    assert all(f"<li>{warning}</li>" in page for warning in result.warnings)


def fields_for_type_checkers(name: str, where: object) -> dict[str, str]:
    """The annotations of a `TypedDict` that only type checkers see, from its source."""
    source = ast.parse(Path(inspect.getfile(where)).read_text("utf-8"))  # type: ignore[arg-type]
    [typed] = [
        node for node in ast.walk(source) if isinstance(node, ast.ClassDef) and node.name == name
    ]
    return {
        ast.unparse(line.target): ast.unparse(line.annotation)
        for line in typed.body
        if isinstance(line, ast.AnnAssign)
    }


@pytest.mark.parametrize(
    ("options", "name", "functions"),
    [
        (lw.MergeOptions, "OptionFields", (lw.plan, lw.merge)),
        (FitOptions, "FitFields", (lw.fit_layer_weights,)),
    ],
)
def test_help_and_type_checkers_know_every_option(
    options: type, name: str, functions: tuple[Callable[..., object], ...]
) -> None:
    """From one list: the fields of the options."""
    wanted = {f.name: f for f in dataclasses.fields(options)}
    for function in functions:
        shown = inspect.signature(function).parameters
        assert {name: shown[name].default for name in wanted} == {
            name: field.default for name, field in wanted.items()
        }
        assert all(p.kind is not inspect.Parameter.VAR_KEYWORD for p in shown.values())
    if options is lw.MergeOptions:
        told = inspect.getdoc(lw.plan) or ""
        assert all(f"`{word}`" in told for word in (*wanted, *SCHEDULES))
    documented = re.findall(r"(?m)^ +(\w+): ", inspect.getdoc(options) or "")
    assert documented == list(wanted)
    hints = fields_for_type_checkers(name, options)
    if "max_shard_size" in hints:
        assert hints.pop("max_shard_size") == "str | int"  # as bytes, too
        del wanted["max_shard_size"]
    assert hints == {name: str(field.type) for name, field in wanted.items()}


def test_help_and_type_checkers_know_how_a_data_set_is_read() -> None:
    wanted = {
        name: parameter
        for name, parameter in inspect.signature(open_data).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    for function in (lw.evaluate, lw.compare):
        shown = inspect.signature(function).parameters
        assert wanted.keys() <= shown.keys()
        doc = inspect.getdoc(function) or ""
        assert all(f"{name}: " in doc or f"`{name}`" in doc for name in wanted)
    hints = fields_for_type_checkers("ReadingFields", open_data)
    assert hints == {n: p.annotation for n, p in wanted.items() if n not in {"split", "task"}}


def test_a_type_checker_finds_a_misspelt_option_and_no_fault_in_the_readme(tmp_path: Path) -> None:
    """`scores.iou["road"]` was one: it might have been None."""
    code = 'import lwmm_hub as lw\nlw.plan("a", "b", schedule="linear", {})\n'
    readme = (ROOT / "README.md").read_text("utf-8")
    cases = [("\n".join(re.findall(r"```python\n(.*?)```", readme, re.DOTALL)), "")]
    for argument, said in (("gamma=2.0", ""), ("shedule='x'", "shedule"), ("gamma='x'", "gamma")):
        cases.append((code.format(argument), said))
    rooms = "import lwmm_hub as lw\nlw.evaluation.ConfusionMatrix(2)\nlw.fitting, lw.controls\n"
    cases += [(rooms, ""), ("import lwmm_hub as lw\nlw.drift\n", '"drift"')]
    command = [
        *(sys.executable, "-m", "mypy", "--strict", "--allow-untyped-defs", "use.py"),
        *("--cache-dir", ".mypy", "--follow-imports", "silent"),
    ]
    environment = {**os.environ, "MYPYPATH": str(ROOT)}
    for text, said in cases:
        (tmp_path / "use.py").write_text(text)
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == bool(said), done.stdout + done.stderr
        assert said in done.stdout


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda m: lw.plan(3, m.donor), "a int names no model"),
        (lambda m: lw.resolve(None), "a NoneType names no model"),
        (lambda m: lw.merge(m.anchor, lw.plan(m.anchor, m.donor)), "a plan holds all its models"),
        (lambda m: lw.merge(lw.plan(m.anchor, m.donor), gamma=2.0), "or plan anew with others"),
        (lambda m: lw.match(m.anchor, m.donor), "is not opened: lw.resolve opens it"),
        (lambda m: lw.plan([m.anchor, m.donor]), "one by one, not in a list"),
        (lambda m: lw.plan(m.anchor, [m.donor]), "one by one, not in a list"),
        (
            lambda m: lw.plan(m.anchor, m.donor, weights=[0.5, 0.5]),
            "weights is of type list: give a mapping",
        ),
        (
            lambda m: lw.plan(m.anchor, m.donor, weights={"head": 1}),
            "has 1 for .head.: give a list",
        ),
        (lambda m: lw.measure_drift(m.anchor, m.donor), "is no key map: lw.match"),
        (lambda m: lw.MergePlan.load("none.json"), "the plan none.json: No such file or directory"),
        (lambda m: lw.merge(m.anchor, m.donor, threads="2"), "threads is '2': give a number"),
        (lambda m: lw.merge(m.anchor, m.donor, tags="abc"), "tags is 'abc': give a list"),
        (
            lambda m: lw.plan(m.anchor, m.donor, weights={"stages": [1, 0]}, schedule="cosine"),
            "weights take the place of a schedule",
        ),
        (lambda m: lw.plan(m.anchor, m.donor, shedule="cosine"), "unknown option 'shedule'"),
        (lambda m: lw.evaluate(m.anchor, "org/data", labelspace="x"), "unknown option 'labelsp"),
        (
            lambda m: lw.evaluate(m.anchor, "org/data", batchsize=2),
            "unknown option 'batchsize'. Known: .*batch_size.*, streaming",
        ),
        (lambda m: lw.compare([m.anchor], "org/data", overlays=2), "Known: .*overlay, speed"),
        (
            lambda m: lw.fit_layer_weights(lw.plan(m.anchor, m.donor), "org/data", rate=0.1),
            "unknown option 'rate'. Known: steps",
        ),
    ],
)
def test_what_is_called_wrongly_is_said_in_a_line(
    wrong: Callable[[Models], object], said: str, tiny: Models
) -> None:
    with pytest.raises(lw.LwmmError, match=said):
        wrong(tiny)


def test_sizes_are_numbers_and_models_are_paths_too(tiny: Models, tmp_path: Path) -> None:
    assert lw.resolve(tiny.anchor).entries == lw.resolve(str(tiny.anchor)).entries
    result = lw.merge(tiny.anchor, tiny.donor, output=tmp_path / "m", max_shard_size=100_000)
    assert len(result.files) > 1
    assert lw.resolve(result).entries.keys() == lw.resolve(str(tiny.anchor)).entries.keys()
    lw.verify(result.folder)


def notebook() -> list[dict[str, Any]]:
    """The code cells of the example."""
    found = json.loads((STREET / "notebook.ipynb").read_text("utf-8"))
    return [cell for cell in found["cells"] if cell["cell_type"] == "code"]


def test_the_cells_of_the_notebook_run(tmp_path: Path) -> None:
    """As a program: what stands alone in the last line of a cell is printed."""
    shutil.copytree(STREET, tmp_path / "street", ignore=shutil.ignore_patterns("models", "*.ipynb"))
    code = "\n".join("".join(cell["source"]) for cell in notebook())
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "street",
        env={**os.environ, "LWMM_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    shown = "".join(
        "".join(output["text"])
        for cell in notebook()
        for output in cell["outputs"]
        if output["output_type"] == "stream"
    )
    steady = re.compile(r"(?m)^(?!peak memory|m?IoU|pixel|mean class).*$")
    assert steady.findall(done.stdout) == steady.findall(shown)


def test_the_notebook_shows_what_a_plan_looks_like_now() -> None:
    plan = lw.plan(str(STREET / "anchor"), str(STREET / "donor"), check_weights=True)
    [output] = notebook()[0]["outputs"]
    assert "".join(output["data"]["text/html"]) == plan._repr_html_()
    pages = [o["data"]["text/html"] for c in notebook() for o in c["outputs"] if "data" in o]
    assert sum("src='data:image/png;base64" in "".join(page) for page in pages) == 1
