"""YAML that somebody else wrote: nothing is executed, no name stands twice, nothing takes long.

PyYAML's safe loaders still make gigabytes of a few lines (aliases), take quadratic time for a
number to the base of 60 (`1:1:1:...`), read the name `1.10` as the number 1.1 and the number `1e-5`
as a text, let the last of two rows of a name win, and raise whatever Python raises for a value that
does not fit its tag.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import yaml

# numbers of JSON and of YAML 1.2, which are texts to PyYAML
EXPONENT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)[eE][-+]?[0-9]+\Z")
_MAX_SCALAR = 1000  # characters of a value that is no text
_MAX_NESTING = 32  # of texts' lists and tables; libyaml's time grows with the square
# what PyYAML raises for a value that does not fit its tag, such as `!!bool x`
_MISFITS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


class NotYamlError(ValueError):
    """A text is not YAML, or not of the plain kind that is asked for; says why in one line."""


class TwiceError(ValueError):
    """A name stands twice in one table; `str` of it is the name, shortened."""


def each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A table of its rows, for YAML and JSON (`object_pairs_hook`).

    Raises:
        TwiceError: a name stands in it twice; the last row would win silently.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        raise TwiceError(Counter(name for name, _ in pairs).most_common(1)[0][0][:80])
    return found


def load_values(text: str, as_written: tuple[str, ...] = ()) -> Any:
    """What a YAML text holds; names are the text as written, each once, scalars are bounded.

    Args:
        text: the YAML.
        as_written: names whose values are texts, too, whatever they look like.

    Raises:
        NotYamlError: it is not YAML, has merge keys, or a name is no text.
        TwiceError: a name stands twice in one table.
    """
    return _load(text, _value_loader(as_written))


def load_texts(text: str) -> Any:
    """What a YAML text holds, of texts, lists and tables alone: numbers, dates and such are None.

    Raises:
        NotYamlError: it is not YAML, has aliases or merge keys, or is nested deeply.
    """
    import yaml

    depth = 0
    try:
        for event in yaml.parse(text, _text_loader()):
            if isinstance(event, yaml.AliasEvent) or getattr(event, "value", None) == "<<":
                raise NotYamlError("it has aliases or merge keys")
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > _MAX_NESTING:
                raise NotYamlError("it is nested too deeply")
    except yaml.YAMLError as error:
        raise _explained(error) from error
    return _load(text, _text_loader())


def scalar(node: yaml.ScalarNode) -> Any:
    """The value of a scalar of a composed text; the node itself where it has none."""
    import yaml

    if len(node.value) > _MAX_SCALAR and not node.tag.endswith(":str"):
        return node
    try:
        return yaml.SafeLoader("").construct_object(node)
    except (yaml.YAMLError, *_MISFITS):
        return node


def _load(text: str, loader: Any) -> Any:
    import yaml

    try:
        return yaml.load(text, Loader=loader)  # one of the safe loaders below
    except TwiceError:
        raise
    except RecursionError:
        raise NotYamlError("it is nested too deeply") from None
    except (yaml.YAMLError, *_MISFITS) as error:
        raise _explained(error) from error


def _explained(error: Exception) -> NotYamlError:
    """The same in one line: PyYAML quotes the text around it."""
    problem = getattr(error, "problem", None) or "it is not YAML"
    mark = getattr(error, "problem_mark", None)
    return NotYamlError(f"line {mark.line + 1}: {problem}" if mark is not None else problem)


@functools.cache
def _value_loader(as_written: tuple[str, ...]) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """yaml.SafeLoader, but names are the text as written, each once."""

        def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict[Any, Any]:
            if not isinstance(node, yaml.MappingNode):
                return super().construct_mapping(node, deep)  # type: ignore[arg-type]  # raises
            pairs: list[tuple[str, Any]] = []
            for key, value in node.value:
                plain = isinstance(key, yaml.ScalarNode)
                if not plain or key.value == "<<":
                    why = "merge keys (<<) are not read" if plain else "a name is no text"
                    raise yaml.MarkedYAMLError(None, None, why, key.start_mark)
                text = key.value in as_written and isinstance(value, yaml.ScalarNode)
                built = value.value if text else self.construct_object(value, deep)
                pairs.append((key.value, built))
            return each_once(pairs)

        def construct_scalar(self, node: yaml.Node) -> Any:
            if not node.tag.endswith(":str") and len(node.value) > _MAX_SCALAR:
                raise yaml.MarkedYAMLError(None, None, "it is too long", node.start_mark)
            return super().construct_scalar(node)  # type: ignore[arg-type]  # as yaml calls it

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", EXPONENT, list("-+.0123456789"))
    return Loader


@functools.cache
def _text_loader() -> Any:
    import yaml

    # libyaml's where it is installed, which no type checker knows
    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        """A safe loader whose constructors are those of texts, lists and tables alone."""

    known = yaml.SafeLoader.yaml_constructors
    kinds = [f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map")]
    Loader.yaml_constructors = {kind: known[kind] for kind in kinds}
    Loader.yaml_constructors[None] = lambda loader, node: None
    Loader.yaml_multi_constructors = {}
    return Loader
