"""What no card, log or commit may show: access tokens, and paths of somebody's machine."""

from __future__ import annotations

import os
import re

from lwmm_hub.errors import CardError

_TOKENS = (
    # of the Hub: of a user, of an organisation, of a login in the browser, the signed ones of jobs
    r"(?:hf_|api_org_)[A-Za-z0-9]{20,}",
    r"hf_(?:oauth|jwt)_(?:eyJ[\w-]{8,}|[A-Za-z0-9]{20,})(?:\.[\w-]+)*",
    r"\b(?:gh[oprsu]_[A-Za-z0-9]{30,}|github_pat_\w{40,})",
    r"\bglpat-[\w-]{20,}",
    r"(?<![\w-])sk-(?:[A-Za-z0-9]{32,}|(?:proj|svcacct|admin|ant|or)-[\w-]{24,})",
    r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    r"\bxox[abeoprs]-\d[\w-]{16,}|hooks\.slack\.com/services/[\w/]{20,}",
    r"\bAIza[\w-]{35,}|\bya29\.[\w-]{20,}|\bGOCSPX-[\w-]{20,}",
    r"\bnpm_[A-Za-z0-9]{36}\b|\bpypi-AgE[\w-]{20,}",
    r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}",  # a JSON web token
    r"-----BEGIN (?:[A-Z0-9]{1,16} ){0,4}PRIVATE KEY-----[^-]*",
    r"(?<=://)[^\s/:@\"'<>]{0,64}:[^\s/:@\"'<>]{1,256}(?=@[\w.-])",  # a password in an address
)
TOKEN = re.compile("|".join(_TOKENS))

_ROOTS = (
    r"Applications|Users|Volumes|afs|app|builds|cluster|code|content|cygdrive|data\d*|datasets|dev"
    r"|disks?\d*|etc|export|fsx|gpfs\d*|hdd\d*|home\d*|kaggle|lustre\d*|media|mnt\d*|net|nfs\d*"
    r"|nobackup|notebooks|nvme\d*|opt|private|proc|projects?|raid\d*|root|run|scratch\d*|shared?"
    r"|srv|ssd\d*|storage\d*|sys|teamspace|tmp|userhome|users|usr|var|work\d*|workspaces?"
)
_SYSTEM = frozenset({"bin", "boot", "lib", "lib32", "lib64", "sbin"})  # nobody's models
_WEIGHTS = r"(?:safetensors|pth|pt|ckpt|bin|pkl|onnx|h5|np[yz]|pb|tflite|tar(?:\.gz)?|zip)"
_FILES = rf"(?:{_WEIGHTS}|ya?ml|json|py|txt|csv|tsv|log|sh|ipynb|md|png|jpe?g|tiff?|cfg|toml)"
_PART = r"[\w.@+-]{1,64}"  # of a path
_VARIABLE = r"[A-Z][A-Z0-9_]{2,63}"
# what may stand before a slash that begins a path: also a compiler's `-I`
_BEGINS = r"(?:(?<![\w./-])|(?<![\w-])-[A-Za-z])"
# The last group is the root of any other path: it counts where this machine has such a folder.
LOCAL_PATH = re.compile(
    r"(?i:(?:file|smb|sftp|ssh|nfs|hdfs|dbfs):/)"
    r"|(?<![\w.~/\\-])~(?:[a-z_][\w-]*)?/(?=[\w.@+$-])"
    rf"|\$(?:\{{{_VARIABLE}\}}|{_VARIABLE}|env:\w{{1,64}})[/\\](?=[\w.$])"
    rf"|%{_VARIABLE}(?:\(x86\))?%[/\\](?=[\w.%])"
    rf"|(?:{_BEGINS}/|(?<![\w./:-])//+)(?:{_ROOTS})/+(?=[^\s/\"'<>|`])"
    # a file: of weights in any folder, of other kinds at least two folders down
    rf"|{_BEGINS}/(?:{_PART}/){{0,16}}{_PART}\.{_WEIGHTS}(?![\w-])"
    rf"|{_BEGINS}/(?:{_PART}/){{2,16}}{_PART}\.{_FILES}(?![\w-])"
    r"|(?<![A-Za-z0-9])[A-Za-z]:(?:\\|/(?:Users|Windows|Documents)\b)"
    r"|(?<![A-Za-z0-9])[A-Za-z]:/[\w.@+-][\w.@+ -]{0,63}/[\w.@+-]"  # two folders: `a:/b` is a word
    rf"|(?<![A-Za-z0-9])[A-Za-z]:/[\w@+ -]{{1,64}}\.{_WEIGHTS}(?![\w-])"
    r"|(?<![\\\w])\\\\[A-Za-z0-9.-]+\\[A-Za-z0-9]"
    # a share; an address without its protocol has a dot, and base64 anything around two slashes
    r"|(?<![\w./:+-])//[A-Za-z0-9][\w-]{1,62}/[\w$-][\w.$ -]{0,63}/[\w.-]"
    r"|(?<![\w./-])/(?P<root>[\w@+-][\w.@+-]{0,63})(?=/[^\s/\"'<>|`])"
)
# Behind its beginning a path goes on to a space; and over some, where a separator or the end of a
# file of weights comes soon, but not over what reads like the rest of a sentence.
_WORD = r" (?!(?:and|are|as|at|but|by|for|from|in|is|of|on|or|than|to|vs|was|with)\b)[\w.@+()-]+"
_REST_OF_PATH = re.compile(
    r"[^\s\"'<>|`]*(?<![,;:)\]])"
    rf"(?:(?:{_WORD}){{1,4}}(?:[/\\]+[^\s\"'<>|`]*(?<![,;:)\]])|(?<=\.pth)|(?<=\.ckpt)|(?<=\.bin)"
    r"|(?<=\.safetensors)|(?<=\.pt))(?![\w])){0,8}"
)


def assert_publishable(text: str, *, token: str | None = None, paths: bool = True) -> None:
    """Do nothing where `text` shows neither a token nor a path of somebody's machine.

    Args:
        text: to be published.
        token: the one in use, whatever it looks like.
        paths: whether paths count; a licence may speak of any.

    Raises:
        CardError: It shows one; the message does not repeat it.
    """
    for shown in dict.fromkeys((text, _as_read(text))):
        if TOKEN.search(shown) or (token and len(token) >= 8 and token in shown):
            raise CardError(
                "The text shows an access token, password or private key. Remove it; revoke it if "
                "it was out."
            )
        found = _local_path(shown) if paths else None
        if found:
            line = shown.count("\n", 0, found.start()) + 1
            raise CardError(
                f"Line {line} shows a path of this machine. Take it out, or name local models by a "
                "label."
            )


def redact(text: str) -> str:
    """`text` with tokens and local paths replaced, a quoted path to its closing quote.

    >>> redact("from /home/me/run/latest.pth, hf_abcdefghijklmnopqrstuvwx")
    'from [local path], [token]'
    >>> redact("cannot read '/home/me/my runs/a.pth': truncated")
    "cannot read '[local path]': truncated"
    """
    text = TOKEN.sub("[token]", text)
    if "/" not in text and "\\" not in text:
        return text
    shown, end = "", 0
    while found := _local_path(text, end):
        shown += f"{text[end : found.start()]}[local path]"
        before = text[found.start() - 1] if found.start() else ""
        closing = text.find(before, found.end()) if before and before in "\"'`" else -1
        rest = _REST_OF_PATH.match(text, found.end())
        end = closing if closing > 0 else rest.end() if rest else found.end()
    return shown + text[end:]


def _local_path(text: str, start: int = 0) -> re.Match[str] | None:
    """The first path of a machine from `start` on."""
    for found in LOCAL_PATH.finditer(text, start):
        root = found["root"]
        if root is None or (root not in _SYSTEM and os.path.isdir(f"/{root}")):  # noqa: PTH112
            return found  # pathlib raises where the name is too long
    return None


def _as_read(text: str) -> str:
    """Markdown as its reader sees it: entities and backslash escapes resolved."""
    if "&" in text:
        from html import unescape

        text = unescape(text)
    return re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", text)
