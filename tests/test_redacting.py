"""What counts as a token or a path of somebody's machine, and what only looks like one."""

from __future__ import annotations

import json
import time

import pytest

from lwmm_hub.card import assert_publishable, escape_markdown, redact
from lwmm_hub.errors import CardError

LETTERS = "aB3dE6gH9jK2mN5pQ8sT1vW4xY7z"
PATHS = (
    # folders that no machine of the tests has
    "-I/home/zoe/include",
    "-L/opt/zoe/lib",
    "--data=/scratch2/zoe",
    "/data1/zoe/runs",
    "/cygdrive/c/zoe",
    "/nobackup/zoe/x",
    "/cluster/home/zoe",
    "x:/home/zoe/x",
    # files, of weights in any folder
    "/zoe.pth",
    "/zoe.safetensors",
    "/u/zoe/x.ckpt",
    "/p/q/zoe/config.yaml",
    "/home/zoe/my models/a b/x.pth",
    "/Users/Zoe zoe/Library/Mobile Documents/x.pth",
    "/home/me/zoe model.pth",
    # of Windows, shares, addresses of files
    "C:/zoe.pth",
    "C:\\Users\\Zoe zoe\\x.pth",
    "\\\\server\\zoe\\x.pth",
    "file://localhost/zoe/x",
    "smb://server/zoe",
    "ssh://zoe@server/x",
    # what a shell expands
    "$HOME/zoe/x.pth",
    "${SCRATCH}/zoe",
    "%USERPROFILE%\\zoe\\x.pth",
    "%APPDATA%/zoe",
    "$env:USERPROFILE\\zoe",
    "~/.cache/zoe",
)
TOKENS = (
    f"hf_{LETTERS}",
    f"ghp_{LETTERS}abcdefgh",
    f"github_pat_{LETTERS}_{LETTERS}",
    f"glpat-{LETTERS}",
    f"sk-{LETTERS}{LETTERS}",
    f"sk-proj-{LETTERS}_x-{LETTERS}",
    f"sk-ant-api03-{LETTERS}",
    "AKIA" + "IOSFODNN7ABCDEFG",
    f"xoxb-123456789012-1234567890123-{LETTERS}",
    f"https://hooks.slack.com/services/T00000000/B00000000/{LETTERS}",
    f"AIzaSy{LETTERS}abcdefgh",
    f"ya29.{LETTERS}",
    f"npm_{LETTERS}abcdefgh",
    f"pypi-AgEIcHlwaS5vcmc{LETTERS}",
    f"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.{LETTERS}",
    f"-----BEGIN OPENSSH PRIVATE KEY----- {LETTERS} -----END OPENSSH PRIVATE KEY-----",
    f"-----BEGIN PRIVATE KEY----- {LETTERS}",
    f"https://user:{LETTERS}@example.org/x",
)
HARMLESS = (
    "/m/01g317",
    "/c/en/road",
    "N/A",
    "n/a",
    "and/or",
    "he/she/they",
    "km/h",
    "1/2",
    "s/m/l",
    "a / b / c",
    "traffic light/sign",
    "object--vehicle--car",
    "/Vehicle/Car/Van",
    "/train/x",
    "~5 %",
    "~/",
    "5 $/GB",
    "$A/B",
    "50%/50%",
    "</s>",
    "C:",
    "a:/b",
    "sk-learn",
    "task-adaptive-pretraining-of-vision-transformers",
    "mask-rcnn-resnet50-fpn-coco-2017-pretrained-weights",
    "xoxo",
    "pypi-server",
    "github_pattern_of_names",
    "eyJhbGciOiJIUzI1NiJ9",
    "-----BEGIN CERTIFICATE-----",
    "https://example.org/home/page/x.pth",
    "https://example.org:8080/data/x@y",
    "https://user@example.org/x",
    "http://127.0.0.1:9/a/b.json",
    "org/name:run/latest.pth",
    "hf://org/name/model.safetensors",
    "./runs/latest.pth",
    "stages.0/weight",
    "model.safetensors",
    "0123456789abcdef0123456789abcdef01234567",
)


@pytest.mark.parametrize("secret", [*PATHS, *TOKENS])
@pytest.mark.parametrize("around", ["{}", "see {}", "'{}'", "(see {})", "a={}, b", "`{}`: bad"])
def test_a_secret_is_refused_and_redacted_whole(secret: str, around: str) -> None:
    text = around.format(secret)
    with pytest.raises(CardError) as refused:
        assert_publishable(text)
    assert "zoe" not in str(refused.value)
    shown = redact(text)
    assert_publishable(shown)
    assert "zoe" not in shown
    assert LETTERS[:12] not in shown
    with pytest.raises(CardError):
        assert_publishable(escape_markdown(text))


@pytest.mark.parametrize("text", HARMLESS)
@pytest.mark.parametrize("around", ["{}", "see {}", "'{}'", "({})", "a={}, b", "`{}`"])
def test_what_only_looks_like_a_secret_stays(text: str, around: str) -> None:
    text = around.format(text)
    assert redact(text) == text
    assert_publishable(text)


def test_a_sentence_goes_on_behind_a_path() -> None:
    assert redact("from /home/zoe/x and a/b") == "from [local path] and a/b"
    assert redact("read /home/zoe/x: N/A") == "read [local path]: N/A"
    assert redact("(/home/zoe/x), N/A") == "([local path]), N/A"


def test_vocabularies_of_bytes_and_pieces_are_no_secrets() -> None:
    signs = ["/", "//", "/*", "\\", "\\\\", "~", "$", "%", ":", ":/", ".", "../", "</", "Ġ/"]
    ends = ["x", "json", "config", "pth", "m", "A", "HOME", "1", "Ġ", ""]
    words = {f"{before}{sign}{behind}" for before in ends for sign in signs for behind in ends}
    table = {word: i for i, word in enumerate(sorted(words))}
    assert_publishable(json.dumps(table, ensure_ascii=False))


@pytest.mark.parametrize(
    "text",
    ["/" * 20, "/a", "/a.b ", "/home/x a a", "a/ ", "eyJ", "-----BEGIN ", "sk-", "://a:", "C:/ "],
)
def test_no_text_takes_long_to_be_read(text: str) -> None:
    text *= 400_000 // len(text)
    started = time.perf_counter()
    redact(text)
    assert time.perf_counter() - started < 5
