"""Text from outside, made fit for one line of a terminal, a picture or a card."""

from __future__ import annotations

import unicodedata


def one_line(text: object) -> str:
    r"""`text` on one line, without control, bidirectional and other invisible characters.

    >>> one_line("a\u202eb\n---\tc\x00")
    'ab --- c'
    """
    shown = str(text)
    if not (shown.isascii() and shown.isprintable()):
        shown = "".join(visible(character) for character in shown)
    return " ".join(shown.split())


def visible(character: str, keep: str = "") -> str:
    """The character, a space for a line or paragraph break, nothing for an invisible one."""
    if character in keep or (character.isprintable() and character.isascii()):
        return character
    if character.isspace() or unicodedata.category(character) in ("Zl", "Zp"):
        return " "
    return "" if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn") else character


def escape(text: str) -> str:
    """`text` for HTML and SVG, as `html.escape` gives it: that module knows 2231 names by heart.

    >>> escape("a < 'b' & c")
    'a &lt; &#x27;b&#x27; &amp; c'
    """
    for sign, name in (("&", "amp"), ("<", "lt"), (">", "gt"), ('"', "quot"), ("'", "#x27")):
        text = text.replace(sign, f"&{name};")
    return text


def size(number: float) -> str:
    """A number of bytes.

    >>> size(338930000), size(12), size(5.3e9)
    ('338.9 MB', '12 bytes', '5.3 GB')
    """
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= scale:
            return f"{number / scale:.1f} {unit}"
    return f"{number:.0f} bytes"
