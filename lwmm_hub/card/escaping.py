"""Text from repositories -> text that says the same in Markdown and does nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from lwmm_hub.display.text import one_line, visible

_PUNCTUATION = {ord(mark): f"\\{mark}" for mark in "\\`*_[](){}!|~$#"}
_ENTITIES = {ord("&"): "&amp;", ord("<"): "&lt;", ord(">"): "&gt;", ord("@"): "&#64;"}
_IN_MARKDOWN = str.maketrans({**_PUNCTUATION, **_ENTITIES})
_AUTOLINK = re.compile(r"(?<=\w):(?=\S)|(?<=www)\.", re.IGNORECASE)
_BLOCK_START = re.compile(r"^([-+=]|\d{1,9}(?=\.(?: |$)))")
_PLAIN = re.compile(r"[\w./:+%,-]+", re.ASCII)


class Markdown(str):
    """Text that is Markdown already; every other string is escaped on its way into a card."""

    __slots__ = ()


NOTHING = Markdown("-")
"""What a table's cell shows where there is nothing to show."""


def escape_markdown(text: str) -> Markdown:
    r"""`text` so that Markdown (CommonMark, GFM, and the Hub's) shows exactly it, on one line.

    >>> escape_markdown("<img src=x onerror=..> a|b `c` [d](javascript:e)")
    '&lt;img src=x onerror=..&gt; a\\|b \\`c\\` \\[d\\]\\(javascript&#58;e\\)'
    >>> escape_markdown("---\nlicense: mit")
    '\\--- license: mit'
    """
    escaped = one_line(text).translate(_IN_MARKDOWN)
    escaped = _AUTOLINK.sub(lambda found: f"&#{ord(found[0])};", escaped)
    first = _BLOCK_START.match(escaped)
    if first and first[0].isdigit():
        escaped = f"{first[0]}\\{escaped[first.end() :]}"
    elif first:
        escaped = f"\\{escaped}"
    return Markdown(escaped)


def escape_table_cell(text: str) -> Markdown:
    r"""`text` for one cell of a Markdown table; an empty one shows a dash.

    >>> escape_table_cell("road | sidewalk"), escape_table_cell("")
    ('road \\| sidewalk', '-')
    """
    return escape_markdown(text) or NOTHING


def code(text: str) -> Markdown:
    r"""`text` as a code span where it is plain (keys, names, hashes), else escaped.

    >>> code("stages.0.weight"), code("a`b")
    ('`stages.0.weight`', 'a\\`b')
    """
    return Markdown(f"`{text}`") if _PLAIN.fullmatch(text) else escape_markdown(text)


def fence(text: str, language: str = "") -> Markdown:
    r"""`text` as a fenced code block, the fence longer than any run of backticks inside.

    >>> print(fence("a ``` b\n", "yaml"))
    ````yaml
    a ``` b
    ````
    """
    lines = "\n".join("".join(visible(c, keep="\t") for c in line) for line in text.splitlines())
    longest = max((len(run) for run in re.findall("`+", lines)), default=0)
    marks = "`" * max(3, longest + 1)
    return Markdown(f"{marks}{language}\n{lines}\n{marks}")


def link(text: str, address: str | None) -> Markdown:
    """A link to a web address, or only the text where the address is anything else.

    >>> link("LICENSE", "https://a.b/c"), link("x", "javascript:alert(1)")
    ('[LICENSE](https://a.b/c)', 'x')
    """
    label = escape_markdown(text)
    if not label or address is None or not is_web_address(address):
        return label
    return Markdown(f"[{label}]({address})")


def is_web_address(address: str) -> bool:
    """Whether `address` is a plain http(s) address that can stand in a link as it is.

    >>> is_web_address("https://github.com/NVlabs/SegFormer/blob/master/LICENSE")
    True
    >>> is_web_address("https://a.b/c)<script>"), is_web_address("data:text/html,x")
    (False, False)
    """
    return bool(re.fullmatch(r"https?://[A-Za-z0-9.-]+(?::\d+)?(?:/[\w./%?=&#+~,@-]*)?", address))


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> Markdown:
    r"""A Markdown table; cells that are not `Markdown` are escaped.

    >>> print(table(["a", "b"], [["x|y", Markdown("`z`")]]))
    | a | b |
    | --- | --- |
    | x\|y | `z` |
    """
    lines = [_row(headings), _row([Markdown("---")] * len(headings))]
    for row in rows:
        if len(row) != len(headings):
            raise ValueError(f"{len(row)} cells in a table of {len(headings)} columns: {row!r}")
        lines.append(_row(row))
    return Markdown("\n".join(lines))


def _row(cells: Sequence[object]) -> str:
    shown = (c if isinstance(c, Markdown) else escape_table_cell(str(c)) for c in cells)
    return f"| {' | '.join(shown)} |"
