"""The house: who may import whom, what may not be written anywhere, and how long a module is."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import lwmm_hub

SOURCE = Path(lwmm_hub.__file__).parent
MODULES = sorted(SOURCE.rglob("*.py"))
# A room (a module, or a package as a whole) imports only rooms above it. Imports inside functions
# and under TYPE_CHECKING count.
ROOMS = (
    "errors",
    "small_files",
    "foreign_yaml",
    "keywords",
    "reference",
    "checkpoint",
    "resolving",
    "families",
    "key_map",
    "tracing",
    "meanings",
    "matching",
    "schedule",
    "weight_table",
    "floats",
    "relatedness",
    "inferring",
    "untrained",
    "lineage",
    "options",
    "display",
    "planning",
    "recipe",
    "merging",
    "torch_files",
    "writing",
    "loading",
    "evaluation",
    "drifting",
    "licenses",
    "card",
    "manifest",
    "recognising",
    "publishing",
    "merge_result",
    "preparing",
    "pipeline",
    "rerunning",
    "verifying",
    "controls",
    "judging",
    "fitting",
    "converting",
    "cli",
)
ENTRANCES = {"__init__", "__main__"}  # below all rooms
# What is heavy or reaches the network, and the only rooms that may ask for it.
GUESTS = {
    "torch": {"checkpoint", "tracing", "torch_files", "evaluation", "fitting"},
    # a type in merge_result and converting
    "transformers": {"tracing", "loading", "evaluation", "merge_result", "converting"},
    "huggingface_hub": {"tracing", "resolving", "evaluation", "publishing", "cli"},
    "matplotlib": {"drifting"},
    "click": {"cli"},
    "jinja2": set(),
    "yaml": {"foreign_yaml", "recipe", "card"},
    "datasets": {"evaluation"},
    "evaluate": {"evaluation"},
    "pycocotools": {"evaluation"},
    "socket": set(),
    "urllib.request": set(),
    "pickle": set(),
    "subprocess": set(),
    "runpy": set(),
}
LINES = 450
# Longer than that, and by how much; nothing may be added here, and each wants to be split.
LONG: dict[str, int] = {}


def relative(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """(line, full name) of everything that a module imports, wherever it does."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{relative(path)}:{node.lineno}: a relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def calls(path: Path) -> Iterator[ast.Call]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call):
            yield node


def meaning_of(name: str, path: Path) -> str:
    """What a module assigns to a name, or the text itself where that is no such name."""
    values = [
        ast.unparse(node.value)
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Assign) and name in map(ast.unparse, node.targets)
    ]
    return values[0] if len(values) == 1 else name


def test_every_room_is_in_the_table_and_no_other() -> None:
    assert sorted({room_of(path) for path in MODULES} - ENTRANCES) == sorted(ROOMS)


def test_the_guide_lists_the_rooms_in_this_order() -> None:
    guide = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text("utf-8")
    rows = [line.split("|")[1] for line in guide.splitlines() if line.startswith("| `")]
    assert tuple(re.findall(r"`(\w+)`", " ".join(rows))) == ROOMS


def test_a_room_imports_only_rooms_above_it() -> None:
    wrong = []
    for path in MODULES:
        room = room_of(path)
        above = ROOMS if room in ENTRANCES else ROOMS[: ROOMS.index(room)]
        for line, name in imported(path):
            package, _, rest = name.partition(".")
            other = rest.partition(".")[0]
            if package == "lwmm_hub" and other not in {*above, room, "__version__"}:
                wrong.append(f"{relative(path)}:{line} imports {name}")
    assert wrong == []


def test_heavy_packages_and_the_network_stay_in_their_rooms() -> None:
    wrong = [
        f"{relative(path)}:{line} imports {name}"
        for path in MODULES
        for line, name in imported(path)
        for guest, rooms in GUESTS.items()
        if f"{name}.".startswith(f"{guest}.") and room_of(path) not in rooms
    ]
    assert wrong == []


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_a_module_neither_prints_nor_runs_code_that_it_was_given(path: Path) -> None:
    wrong = []
    for call in calls(path):
        name = ast.unparse(call.func)
        options = {keyword.arg: keyword.value for keyword in call.keywords}
        safe = options.get("weights_only")
        if name == "print" and room_of(path) != "cli":
            wrong.append((call.lineno, "print: the library returns, only the command line speaks"))
        if name in {"eval", "exec", "compile", "__import__", "os.system", "os.popen"}:
            wrong.append((call.lineno, name))
        if name == "torch.load" and not (isinstance(safe, ast.Constant) and safe.value is True):
            wrong.append((call.lineno, "torch.load without weights_only=True"))
        if name.startswith("yaml.") and name.endswith("load") and "Loader" not in options:
            loaders = [meaning_of(ast.unparse(argument), path) for argument in call.args[1:]]
            if name != "yaml.safe_load" and not any("Safe" in loader for loader in loaders):
                wrong.append((call.lineno, f"{name} without a safe loader"))
        if "trust_remote_code" in options:
            wrong.append((call.lineno, "trust_remote_code"))
    assert wrong == []


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_a_module_can_be_read_in_one_sitting(path: Path) -> None:
    lines = len(path.read_text("utf-8").splitlines())
    assert lines <= LONG.get(relative(path), LINES)


def test_modules_that_became_short_leave_the_list_of_long_ones() -> None:
    short = [
        name
        for name in LONG
        if not (SOURCE / name).is_file()
        or len((SOURCE / name).read_text("utf-8").splitlines()) <= LINES
    ]
    assert short == []


def test_no_room_has_the_name_of_a_public_function() -> None:
    """After `import lwmm_hub.merge` the function `lw.merge` would be gone."""
    assert set(lwmm_hub.__all__).isdisjoint(ROOMS)


def test_public_names_are_there_and_stay_few() -> None:
    assert lwmm_hub.__all__ == sorted(lwmm_hub.__all__)
    assert len(lwmm_hub.__all__) <= 23
    for name in lwmm_hub.__all__:
        value = getattr(lwmm_hub, name)
        assert callable(value), name
        assert value.__doc__, name
        assert name in dir(lwmm_hub)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        lwmm_hub.nothing  # noqa: B018


def test_every_error_is_in_the_tree_with_its_exit_code() -> None:
    from lwmm_hub import errors

    drawn = {}
    for line in (errors.__doc__ or "").splitlines():
        words = line.replace("├──", "").replace("└──", "").replace("│", "").split()
        if len(words) > 1 and words[1].isdigit():
            drawn[words[0]] = int(words[1])
    found = {
        name: value.exit_code
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.LwmmError)
    }
    assert found == drawn
