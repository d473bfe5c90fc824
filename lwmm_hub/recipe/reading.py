"""A strict reader of recipes: whatever is wrong is reported with its line."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, get_type_hints

from lwmm_hub.errors import ModelReferenceError, RecipeError, UsageError
from lwmm_hub.foreign_yaml import EXPONENT, scalar
from lwmm_hub.planning import MergeOptions
from lwmm_hub.recipe.values import VERSION, Recipe, RecipeModel, is_path
from lwmm_hub.reference import STAGES, WEIGHTS, ModelReference
from lwmm_hub.schedule import TABLE
from lwmm_hub.small_files import is_stream, read_small_text
from lwmm_hub.weight_table import WeightTable, origin_of

if TYPE_CHECKING:
    import yaml

_MAX_BYTES = 4 << 20


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
