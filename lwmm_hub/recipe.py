"""`lwmm_recipe.yaml`: what it takes to run a merge again bit for bit, and a strict reader for it.

A recipe names pinned parents, the options, and the decisions that the weights made. Everything in
it is checked, and whatever is wrong is reported with its line.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any, NoReturn, get_type_hints

from lwmm_hub.errors import ModelReferenceError, RecipeError, UsageError
from lwmm_hub.foreign_yaml import EXPONENT, scalar
from lwmm_hub.planning import MergeOptions, MergePlan
from lwmm_hub.reference import STAGES, WEIGHTS, ModelReference
from lwmm_hub.schedule import TABLE
from lwmm_hub.small_files import is_stream, read_small_text
from lwmm_hub.weight_table import WeightTable, origin_of

if TYPE_CHECKING:
    import yaml

VERSION = 1
_MAX_BYTES = 4 << 20


@dataclass(frozen=True)
class RecipeModel:
    """One parent of a recipe: a pinned reference, a local path with its label, or the label alone.

    Where there is no reference to say it, `weights` says which copy of the file is meant, and
    `stage` which network of a folder.
    """

    reference: str | None = None
    local: str | None = None
    sha256: Mapping[str, str] = field(default_factory=dict)
    kept_parts: tuple[str, ...] = ()
    weights: str = "student"
    stage: str | None = None


@dataclass(frozen=True)
class Recipe:
    """The parents in order (the anchor first) and the options of a merge.

    `scope_decided` says that `kept_parts` are the verdict on the weights; otherwise they are judged
    when the recipe runs. `pairs_sha256` is the checksum of what was matched by values: they are
    matched anew when the recipe runs, and have to match the same. `table` holds layer weights that
    no schedule gives. `places` says where the values stand that models may show to be wrong.
    """

    models: tuple[RecipeModel, ...]
    options: MergeOptions
    scope_decided: bool = False
    pairs_sha256: str | None = None
    table: WeightTable | None = None
    places: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)


def recipe_of(plan: MergePlan, public: bool, folder: Path | None = None) -> Recipe:
    """The recipe that runs `plan` again.

    Args:
        plan: a decided plan.
        public: name local parents by label and checksum only, never by path.
        folder: where the recipe will lie; local paths are written relative to it.
    """
    models = []
    for model in plan.models:
        sha256 = {name: value for name, value in model.sha256.items() if value}
        if not model.local:
            reference = ModelReference.parse(f"hf://{model.reference}")
            pinned = str(replace(reference, revision=model.commit))
            models.append(RecipeModel(pinned, None, sha256, model.kept_parts))
        elif public:
            chosen = (model.weights, model.stage)
            models.append(RecipeModel(None, model.label, sha256, model.kept_parts, *chosen))
        else:
            text = _relative(model.reference, folder)
            models.append(RecipeModel(text, model.label, sha256, model.kept_parts))
    return Recipe(tuple(models), plan.options, plan.scope_decided, plan.pairs_sha256, plan.table)


def _relative(reference: str, folder: Path | None) -> str:
    """A local reference as seen from `folder`, where that is possible."""
    path, _, query = reference.partition("?")
    absolute = Path(path).expanduser().absolute()
    try:
        text = os.path.relpath(absolute, folder or Path.cwd())
    except ValueError:  # another drive
        text = str(absolute)
    text = Path(text).as_posix()
    text = text if is_path(text) else f"./{text}"
    return f"{text}?{query}" if query else text


def is_path(reference: str) -> bool:
    """Whether a reference of a recipe is a local path; else it is the Hub's.

    >>> is_path("./anchor"), is_path("D:/models/anchor"), is_path("org/name")
    (True, True, False)
    """
    return reference.startswith((".", "/")) or PureWindowsPath(reference).is_absolute()


def moved_recipe(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe as it reads from another folder: its local paths relative to `folder`."""
    models = (
        replace(model, reference=_relative(model.reference, folder))
        if model.reference is not None and is_path(model.reference)
        else model
        for model in recipe.models
    )
    return replace(recipe, models=tuple(models))


def write_recipe(recipe: Recipe, made_by: str) -> str:
    """The recipe as YAML."""
    import yaml

    models = []
    for model in recipe.models:
        row: dict[str, Any] = {}
        row |= {"reference": model.reference} if model.reference else {}
        row |= {"local": model.local} if model.local else {}
        row |= {"weights": model.weights} if model.weights != "student" else {}
        row |= {"stage": model.stage} if model.stage else {}
        row |= {"sha256": dict(model.sha256)} if model.sha256 else {}
        row |= {"kept_parts": list(model.kept_parts)} if model.kept_parts else {}
        models.append(row)
    data = {
        "version": VERSION,
        "models": models,
        "scope_decided": recipe.scope_decided,
        "options": asdict(recipe.options),
    } | ({"pairs_sha256": recipe.pairs_sha256} if recipe.pairs_sha256 else {})
    if recipe.table is not None:
        data["weights_from"] = dict(recipe.table.origin)
        data["layer_weights"] = {name: _Row(row) for name, row in recipe.table.rows.items()}
    body = yaml.dump(
        data,
        Dumper=_dumper(),
        sort_keys=False,
        allow_unicode=True,
        width=1000,
    )
    return (
        f"# Written by {made_by}. The first model is the anchor. Run it again with\n"
        f"#   lwmm-hub merge --recipe lwmm_recipe.yaml -o DIR\n{body}"
    )


class _Row(tuple[float, ...]):
    """Weights of one layer, which are written in one line."""


@functools.cache
def _dumper() -> Any:
    import yaml

    class Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
        """Writes plain values, and rows of weights in one line each."""

    def represent(dumper: Any, row: _Row) -> yaml.Node:
        node: yaml.Node = dumper.represent_sequence(
            "tag:yaml.org,2002:seq", list(row), flow_style=True
        )
        return node

    Dumper.add_representer(_Row, represent)
    return Dumper


def read_recipe(path: Path) -> Recipe:
    """Read and check a recipe file; local paths in it are relative to its folder, if it has one.

    Raises:
        RecipeError: what is wrong, and in which line.
    """
    try:
        text = read_small_text(path, _MAX_BYTES)
    except (OSError, UnicodeDecodeError) as error:
        what = error.strerror if isinstance(error, OSError) else "it is not text"
        raise RecipeError(f"cannot read the recipe {path}: {what}. Give its path.") from error
    name, folder = (str(path), Path()) if is_stream(path) else (path.name, path.parent)
    recipe = parse_recipe(text, name)
    models = tuple(_from_folder(model, folder) for model in recipe.models)
    return replace(recipe, models=models)


def _from_folder(model: RecipeModel, folder: Path) -> RecipeModel:
    text = model.reference
    if text is None or not is_path(text):
        return model
    path, _, query = text.partition("?")
    moved = str(folder / path)
    if not is_path(moved):
        moved = f"./{moved}"
    return replace(model, reference=f"{moved}?{query}" if query else moved)


def parse_recipe(text: str, name: str) -> Recipe:
    """The recipe in `text`; `name` is what messages call the file.

    Raises:
        RecipeError: what is wrong, and in which line.
    """
    return _Reader(name).recipe(text)


class _Reader:
    """Walks the YAML nodes, which know their lines; builds nothing that was not asked for."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.places: dict[str, str] = {}

    def fail(self, node: yaml.Node | None, why: str) -> NoReturn:
        raise RecipeError(f"{self.place(node)}: {why}")

    def place(self, node: yaml.Node | None) -> str:
        return f"{self.name}, line {node.start_mark.line + 1 if node is not None else 1}"

    def recipe(self, text: str) -> Recipe:
        import yaml

        try:
            node = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            before = text[: getattr(error, "position", 0)]  # of a character that YAML has not
            line = mark.line + 1 if mark is not None else before.count("\n") + 1
            problem = getattr(error, "problem", None) or "it is not YAML"
            raise RecipeError(f"{self.name}, line {line}: {problem}. Mend the YAML.") from error
        except RecursionError as error:
            raise RecipeError(
                f"{self.name} is nested too deeply for a recipe. Give the file that a merge wrote."
            ) from error
        known = {"version", "models", "scope_decided", "options", "pairs_sha256"}
        known |= {"layer_weights", "weights_from"}
        top = self.mapping(node, "a recipe", known)
        for required in ("version", "models"):
            if required not in top:
                self.fail(node, f"the field {required!r} is missing.")
        version = self.scalar(top["version"], "version", int)
        if version != VERSION:
            self.fail(top["version"], f"version {version} is unknown, {VERSION} is read. Update.")
        models = self.models(top["models"])
        options = self.options(top["options"], len(models)) if "options" in top else MergeOptions()
        decided = top.get("scope_decided")
        return Recipe(
            models,
            options,
            decided is not None and self.scalar(decided, "scope_decided", bool),
            self.digest(top["pairs_sha256"]) if "pairs_sha256" in top else None,
            self.table(top, options, len(models)),
            self.places,
        )

    def table(
        self, top: Mapping[str, Any], options: MergeOptions, models: int
    ) -> WeightTable | None:
        """Layer weights in numbers, and how they were found."""
        node = top.get("layer_weights")
        if (node is not None) != (options.schedule == TABLE):
            self.fail(
                node or top.get("options"),
                "layer_weights go with 'schedule: table' in the options: write both or none.",
            )
        if node is None:
            return None
        rows: dict[str, tuple[float, ...]] = {}
        for key, value in self.pairs(node, "layer_weights"):
            row = tuple(self.scalar(item, "a weight", float) for item in self.items(value, key))
            try:
                WeightTable({key: row}).check(models)
            except UsageError as error:
                self.fail(value, str(error))
            rows[key] = row
            self.places[f"layer_weights.{key}"] = self.place(value)
        origin = {
            key: self.scalar(value, key, str, int, float, bool, type(None))
            for key, value in self.pairs(top.get("weights_from"), "weights_from")
        }
        try:
            return WeightTable(rows, origin_of(origin))
        except RecipeError as error:
            self.fail(top["weights_from"], str(error))

    def pairs(self, node: Any, what: str) -> list[tuple[str, Any]]:
        """A table whose field names are free, each once."""
        import yaml

        if node is None:
            return []
        if not isinstance(node, yaml.MappingNode):
            self.fail(node, f"{what} is a table.")
        found: dict[str, Any] = {}
        for key, value in node.value:
            text = isinstance(key, yaml.ScalarNode)  # as written: the layer `1.10` is no number
            name = key.value if text else self.fail(key, f"a name in {what} must be a text.")
            if name in found:
                self.fail(key, f"{name[:80]!r} stands in {what} twice.")
            found[name] = value
        return list(found.items())

    def digest(self, node: Any) -> str:
        digest = str(self.scalar(node, "a checksum", str))
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            self.fail(node, "a sha256 has 64 hexadecimal digits.")
        return digest

    def mapping(self, node: Any, what: str, known: set[str]) -> dict[str, Any]:
        import yaml

        if not isinstance(node, yaml.MappingNode):
            self.fail(node, f"{what} is a table of fields: {', '.join(sorted(known))}.")
        found: dict[str, Any] = {}
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else "?"
            if name not in known:
                self.fail(
                    key,
                    f"unknown field {name[:80]!r} in {what}. Known: {', '.join(sorted(known))}.",
                )
            if name in found:
                self.fail(key, f"the field {name!r} stands in {what} twice.")
            found[name] = value
        return found

    def items(self, node: Any, what: str) -> list[Any]:
        import yaml

        if not isinstance(node, yaml.SequenceNode):
            self.fail(node, f"{what} is a list.")
        return list(node.value)

    def scalar(self, node: Any, what: str, *types: type) -> Any:
        import yaml

        if not isinstance(node, yaml.ScalarNode):
            self.fail(node, f"{what} must be {_english(types)}.")
        value = scalar(node)
        written = type(value) is str and str not in types and node.style is None
        if written and float in types and EXPONENT.match(value):
            value = float(value)
        if type(value) is int and float in types and abs(value) < 1 << 53:
            value = float(value)
        if type(value) not in types:
            self.fail(node, f"{what} must be {_english(types)}, not {str(node.value)[:80]!r}.")
        return value

    def models(self, node: Any) -> tuple[RecipeModel, ...]:
        models: list[RecipeModel] = []
        for item in self.items(node, "models"):
            known = {"reference", "local", "weights", "stage", "sha256", "kept_parts"}
            row = self.mapping(item, "a model", known)
            reference = self.reference(row["reference"]) if "reference" in row else None
            local = self.scalar(row["local"], "local", str) if "local" in row else None
            on_hub = reference is not None and not is_path(reference)
            if (on_hub and local) or not (reference or local):
                self.fail(item, "a model has either 'reference' or 'local': write one of them.")
            weights = self.choice(row, "weights", WEIGHTS, reference) or "student"
            stage = self.choice(row, "stage", STAGES, reference)
            if "kept_parts" in row and not models:
                self.fail(row["kept_parts"], "the first model is the anchor: it keeps all parts.")
            hashes, parts = self.hashes(row), self.parts(row)
            models.append(RecipeModel(reference, local, hashes, parts, weights, stage))
        if len(models) < 2:
            self.fail(node, "a merge has at least two models: the anchor and a donor.")
        return tuple(models)

    def reference(self, node: Any) -> str:
        text = str(self.scalar(node, "reference", str))
        if not is_path(text):
            try:
                reference = ModelReference.parse(text if "://" in text else f"hf://{text}")
            except ModelReferenceError as error:
                why = str(error).replace(f"hf://{text}", text)
                self.fail(node, f"{why} In a recipe a local path begins with './', '../' or '/'.")
            text = f"hf://{reference}"
        return text

    def choice(
        self, row: Mapping[str, Any], name: str, known: Sequence[str], reference: str | None
    ) -> str | None:
        """What a row says where there is no reference to say it."""
        if name not in row:
            return None
        value = str(self.scalar(row[name], name, str))
        if reference or value not in known:
            self.fail(row[name], f"{name} goes with 'local' alone and is {', '.join(known)}.")
        return value

    def hashes(self, row: Mapping[str, Any]) -> dict[str, str]:
        import yaml

        if "sha256" not in row:
            return {}
        node = row["sha256"]
        if not isinstance(node, yaml.MappingNode):
            self.fail(node, "sha256 is a table of file names and checksums.")
        found = {}
        for key, value in node.value:
            digest = self.digest(value)
            name = str(self.scalar(key, "a file name", str))
            if name in found:
                self.fail(key, f"the file {name[:80]!r} stands in sha256 twice.")
            found[name] = digest
        return found

    def parts(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        if "kept_parts" not in row:
            return ()
        items = self.items(row["kept_parts"], "kept_parts")
        return tuple(str(self.scalar(item, "a part", str)) for item in items)

    def options(self, node: Any, models: int) -> MergeOptions:
        known = {f.name for f in fields(MergeOptions)}
        hints = get_type_hints(MergeOptions)
        options = MergeOptions()
        last = node
        rows = self.mapping(node, "options", known)
        for name, value in rows.items():
            types = getattr(hints[name], "__args__", (hints[name],))
            options = replace(options, **{name: self.scalar(value, name, *types)})
            self.places[name] = self.place(value)
        for name, value in rows.items():  # a value that is wrong alone is named by its own line
            alone = replace(MergeOptions(), **{name: getattr(options, name)})
            try:
                alone.check(models)
            except UsageError as error:
                self.fail(value, str(error))
            last = value
        try:
            options.check(models)
        except UsageError as error:
            culprit = next((rows[n] for n in ("start", "schedule") if n in rows), last)
            self.fail(culprit, str(error))
        return options


def _english(types: tuple[type, ...]) -> str:
    words = {float: "a number", int: "a whole number", str: "a text", bool: "true or false"}
    return " or ".join(words.get(t, "null") for t in types)
