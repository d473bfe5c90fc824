"""How results reach the user: people, programs and agents want different things.

Data goes to stdout, everything else to stderr. On an error stdout stays empty.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from lwmm_hub.planning import MergePlan

FORMATS = ("auto", "human", "agent", "json", "quiet")
SHOWN_FROM = 200_000_000  # bytes; fewer are there before a bar is read
# set by tools that run commands for a language model
AGENT_VARIABLES = (
    "AI_AGENT",
    "AGENT",
    "CLAUDECODE",
    "CLAUDE_CODE",
    "CODEX_SANDBOX",
    "CURSOR_AGENT",
    "GEMINI_CLI",
)


@dataclass(frozen=True)
class Output:
    """One command's way to speak: `format` is human, agent, json or quiet."""

    format: str

    @classmethod
    def choose(cls, wanted: str, as_json: bool, quiet: bool) -> Output:
        """`--json` and `-q` win over `--format`; auto is human unless an agent calls."""
        if as_json:
            wanted = "json"
        elif quiet:
            wanted = "quiet"
        elif wanted == "auto":
            agent = any(os.environ.get(name) for name in AGENT_VARIABLES)
            wanted = "agent" if agent else "human"
        _quiet_client(bars=wanted == "human" and sys.stderr.isatty())
        return cls(wanted)

    @property
    def color(self) -> bool:
        """Whether stdout shows colours."""
        plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
        return self.format == "human" and sys.stdout.isatty() and not plain

    def result(
        self,
        data: Mapping[str, Any],
        human: Callable[[], str],
        rows: Callable[[], Sequence[str]],
        quiet: str = "",
    ) -> None:
        """Write one result to stdout, in the format that was asked for."""
        if self.format == "json":
            click.echo(json.dumps(data, allow_nan=False, indent=1))  # of ASCII: for any stdout
        elif self.format == "agent":
            click.echo("\n".join(rows()))
        elif self.format == "quiet":
            if quiet:
                click.echo(quiet)
        else:
            click.echo(human())

    def note(self, text: str) -> None:
        """Say something beside the result, on stderr; nothing for programs."""
        if self.format in {"human", "agent"}:
            click.echo(text, err=True)

    def warnings(self, texts: Sequence[str]) -> None:
        """Warnings on stderr, except where the result carries them itself."""
        from lwmm_hub.display import one_line

        if self.format != "json":
            for text in texts:
                click.echo(f"warning: {one_line(text)}", err=True)

    @contextmanager
    def progress(self, what: str) -> Iterator[Bar]:
        """A bar on stderr while bytes are made; only for people at a terminal, and long work."""
        bar = Bar(what, shown=self.format == "human" and sys.stderr.isatty())
        try:
            yield bar
        finally:
            bar.close()


class Bar:
    """A bar that counts bytes, called with those made since the last call.

    How many there will be is often known only once a plan is made: the bar appears with the first
    of them, where so many are expected that somebody waits; where none are, with so many made.
    """

    def __init__(self, what: str, shown: bool) -> None:
        self._what, self._shown = what, shown
        self._total = self._made = 0
        self._bar: Any = None

    def expect(self, total: int) -> None:
        """Say how many bytes there will be in all."""
        self._total = total

    def expect_plan(self, plan: MergePlan) -> None:
        """Say what is to be merged; an `approve` of merges."""
        self.expect(plan.cost.write_bytes)

    def __call__(self, made: int) -> None:
        """Count `made` bytes more."""
        self._made += made
        if self._bar is None:
            if not self._shown or (self._total or self._made) <= SHOWN_FROM:
                return
            from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]  # not re-exported

            self._bar = tqdm(  # type: ignore[no-untyped-call]
                total=self._total or None, desc=self._what, unit="B", unit_scale=True
            )
            made = self._made
        self._bar.update(made)

    def close(self) -> None:
        """Leave the bar as it is, and go on below it."""
        if self._bar is not None:
            self._bar.close()


@contextmanager
def counting_bar(output: Output) -> Iterator[Any]:
    """A bar of `tqdm` that counts images, on stderr; None but for people at a terminal."""
    if output.format != "human" or not sys.stderr.isatty():
        yield None
        return
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]  # not re-exported

    with tqdm(unit="image") as bar:  # type: ignore[no-untyped-call]
        yield bar


def _quiet_client(bars: bool) -> None:
    """Keep the Hub's client from logging retries and, but for people, from drawing bars.

    It, and `datasets`, read these variables when they are imported.
    """
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    if not bars:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
