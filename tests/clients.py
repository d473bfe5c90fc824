"""`lwmm-hub` and Python programs in processes of their own, against the test Hub.

The Hub's client reads its environment when it is imported, so nothing that reaches the Hub can run
in the process of the tests.
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from hub import TestHub
from stories import LOUD, PROGRAM, Finished

# Warnings are errors, but for what the Hub's client does with the HTTP library below it.
_PYTHON = (sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c")

# Runs one command line per line of input, as `lwmm-hub` would, without starting anew.
_LOOP = """
import contextlib, io, json, os, sys
from lwmm_hub.cli.commands import run

for line in sys.stdin:
    job = json.loads(line)
    os.environ.pop("HF_TOKEN", None)
    if job["token"]:
        os.environ["HF_TOKEN"] = job["token"]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(job["arguments"])
    print(json.dumps([code, out.getvalue(), err.getvalue()]), flush=True)
"""


def environment(
    hub: TestHub, home: Path, token: str | None = None, *, xet: bool = True, **more: str
) -> dict[str, str]:
    """That of a person at this Hub: no agent, no debugging."""
    variables = hub.environment(home, token, xet=xet)
    return {name: value for name, value in variables.items() if name not in LOUD} | more


def lwmm_hub(
    *arguments: str | Path,
    hub: TestHub,
    home: Path,
    cwd: Path,
    token: str | None = None,
    xet: bool = True,
    **more: str,
) -> Finished:
    """`lwmm-hub` in a process of its own; nothing in its output may be what nobody should see."""
    return _run(
        [str(PROGRAM), *map(str, arguments)], environment(hub, home, token, xet=xet, **more), cwd
    )


def python(
    code: str,
    *arguments: str | Path,
    hub: TestHub,
    home: Path,
    cwd: Path,
    token: str | None = None,
    xet: bool = True,
    **more: str,
) -> Any:
    """A Python program that ends with a line of JSON, which is returned."""
    command = [*_PYTHON, textwrap.dedent(code), *map(str, arguments)]
    done = _run(command, environment(hub, home, token, xet=xet, **more), cwd)
    assert done.code == 0, done.err
    return json.loads(done.out.splitlines()[-1])


def _run(command: list[str], variables: Mapping[str, str], cwd: Path) -> Finished:
    cwd.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        command,
        cwd=cwd,
        env=dict(variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return Finished(done.returncode, done.stdout, done.stderr)


class Client:
    """One process that runs many command lines, so that a table of them takes no minute."""

    def __init__(self, hub: TestHub, pipes: tuple[IO[str], IO[str]]) -> None:
        self._hub = hub
        self._input, self._output = pipes

    def __call__(self, *arguments: str | Path, token: str | None = None) -> Finished:
        job = {
            "arguments": [str(argument) for argument in arguments],
            "token": self._hub.tokens.get(token, token) if token else None,
        }
        self._input.write(json.dumps(job) + "\n")
        self._input.flush()
        answer = self._output.readline()
        assert answer, "the client is gone"
        return Finished(*json.loads(answer))


@contextmanager
def client(
    hub: TestHub, home: Path, cwd: Path, *, xet: bool = True, **more: str
) -> Iterator[Client]:
    """A client of this Hub whose working folder is `cwd`."""
    cwd.mkdir(parents=True, exist_ok=True)
    with (
        (cwd.parent / f"{cwd.name}.stderr").open("w+") as errors,
        subprocess.Popen(
            [*_PYTHON, _LOOP],
            cwd=cwd,
            env=environment(hub, home, xet=xet, **more),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        yield Client(hub, (process.stdin, process.stdout))
        process.stdin.close()
        process.wait(60)
        errors.seek(0)
        assert errors.read() == ""


def files_of(folder: Path, card: str | None = "license: mit") -> dict[str, bytes | Path]:
    """What a repository of this model holds: the folder, and a card with this front matter."""
    files: dict[str, bytes | Path] = {path.name: path for path in folder.iterdir()}
    if card is not None:
        files["README.md"] = f"---\n{card}\n---\n# A model\n".encode()
    return files


def lines(hub: TestHub, start: str = "") -> list[str]:
    """The requests so far whose line starts so."""
    return [record.line for record in hub.requests if record.line.startswith(start)]


def assert_one_line(finished: Finished, *pieces: str, code: int = 1) -> None:
    """An error as users meet it: exit code, empty stdout, one line that says all this."""
    assert finished.code == code, finished
    assert finished.out == ""
    assert finished.err.count("\n") == 1, finished.err
    assert finished.err.startswith("lwmm-hub: ")
    assert "internal error" not in finished.err
    for piece in pieces:
        assert piece in finished.err, finished.err


def all_text(hub: TestHub, files: Mapping[str, bytes], *finished: Finished) -> Iterable[str]:
    """Everything that was pushed, printed or asked for, as text."""
    yield from (content.decode("utf-8", "replace") for content in files.values())
    for each in finished:
        yield from (each.out, each.err)
    yield from lines(hub)
