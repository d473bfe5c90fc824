"""What `**options` of a function may be, as `help` and completion in a notebook show it.

Type checkers learn it from a `TypedDict` beside what holds the options.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Any, TypeVar

from lwmm_hub.errors import UsageError

F = TypeVar("F", bound=Callable[..., Any])


def fields_of(options: type) -> Callable[[F], F]:
    """A decorator: the function's `**options` are the fields of a dataclass."""
    return _taking((field.name, field.default, field.type) for field in fields(options))


def arguments_of(other: Callable[..., Any]) -> Callable[[F], F]:
    """A decorator: the function's `**options` are the named arguments of another one."""
    return _taking((p.name, p.default, p.annotation) for p in keywords(other))


def keywords(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """The arguments of a function that are given by name alone."""
    known = inspect.signature(function).parameters.values()
    return [p for p in known if p.kind is inspect.Parameter.KEYWORD_ONLY]


def _taking(options: Iterable[tuple[str, Any, Any]]) -> Callable[[F], F]:
    asked = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
        )
        for name, default, annotation in options
    ]

    def decorate(function: F) -> F:
        shown = inspect.signature(function)
        known = shown.parameters.values()
        named = [p for p in known if p.kind is not inspect.Parameter.VAR_KEYWORD]
        more = [p for p in asked if p.name not in shown.parameters]
        vars(function)["__signature__"] = shown.replace(parameters=[*named, *more])
        return function

    return decorate


def plain_fields(options: Any) -> None:
    """Make numbers of numpy in a dataclass (a sweep has them) Python's, which files can hold."""
    for field in fields(options):
        value = getattr(options, field.name)
        if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
            object.__setattr__(options, field.name, value.item())


def check_known(options: Mapping[str, Any], known: Iterable[str]) -> None:
    """Refuse options that there are not.

    Raises:
        UsageError: one is unknown.
    """
    known = list(known)
    for name in options:
        if name not in known:
            raise UsageError(f"unknown option {name!r}. Known: {', '.join(known)}.")
