"""The README says what is true: its commands and its Python run, on a Hub that has its models."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from enumerators import (
    B0,
    TINY,
    ancestor,
    finetuned,
    mit_nvlabs,
    spell,
    with_classes,
    write_pth,
    write_transformers_folder,
)
from hub import TestHub
from PIL import Image

from lwmm_hub.evaluation.label_spaces import label_space

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CITY = "nvidia/segformer-b0-finetuned-cityscapes-1024-1024"
ADE = "nvidia/segformer-b0-finetuned-ade-512-512"
SCRIPTS = Path(sys.executable).parent


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def daformer_like() -> dict[str, np.ndarray]:
    """What DAFormer saves, with a smaller backbone of published sizes: three copies, own head."""
    backbone = spell(mit_nvlabs(B0, "backbone."), ancestor(B0, seed=0))
    model = backbone | {"decode_head.conv_seg.bias": np.zeros(19, np.float32)}
    copies = ("model.", "ema_model.", "imnet_model.")
    return {copy + key: value for copy in copies for key, value in model.items()}


def labelled_images(path: Path) -> Path:
    """Two images with labels, as a table."""
    draw = np.random.default_rng(0)
    columns: dict[str, list[Image.Image]] = {"image": [], "label": []}
    for _ in range(2):
        shown = draw.integers(0, 255, (48, 64, 3)).astype(np.uint8)
        columns["image"].append(Image.fromarray(shown))
        columns["label"].append(Image.fromarray(draw.integers(0, 19, (48, 64)).astype(np.uint8)))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})
    datasets.Dataset.from_dict(columns, features=features).to_parquet(path)
    return path


@pytest.fixture
def readme_hub(hub: TestHub, tmp_path: Path) -> TestHub:
    """A Hub with small models under the names that the README uses."""
    start = ancestor(TINY, seed=0)

    def files(seed: int, classes: int) -> dict[str, bytes | Path]:
        values = with_classes(finetuned(start, seed), classes, seed)
        folder = write_transformers_folder(
            tmp_path / f"model-{seed}",
            values,
            TINY.with_classes(classes),
            labels=label_space("cityscapes-19").labels if classes == 19 else None,
        )
        return {path.name: path for path in folder.iterdir()}

    card = b"---\nlicense: other\n---\n"
    hub.create_repo(CITY, files(1, 19) | {"README.md": card})
    hub.create_repo(ADE, files(2, 150) | {"README.md": card})
    hub.create_repo("org/run", files(3, 19))
    training = write_pth(tmp_path / "latest.pth", daformer_like(), wrapper="state_dict")
    hub.create_repo("org/daformer", {"latest.pth": training})
    for branch, seed in (("step-3000", 4), ("step-2000", 5)):
        hub.branch("org/run", branch)
        hub.add_commit("org/run", files(seed, 19), revision=branch)
    streets = {"data/validation-00000-of-00001.parquet": labelled_images(tmp_path / "streets")}
    hub.create_repo("org/streets", streets, repo_type="dataset")
    return hub


def test_commands_of_the_readme_run(readme_hub: TestHub, tmp_path: Path) -> None:
    environment = readme_hub.environment(tmp_path / "home", token="alice")
    environment["LWMM_HUB_CACHE"] = str(tmp_path / "cache")
    environment["PATH"] = f"{SCRIPTS}:{environment.get('PATH', '/usr/bin:/bin')}"
    work = tmp_path / "work"
    work.mkdir()
    commands = [b for b in blocks("bash") if b.startswith("lwmm-hub")]
    assert len(commands) == 4
    for command in commands:
        done = subprocess.run(
            command.replace("me/", "alice/"),
            shell=True,
            cwd=work,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert readme_hub.exists("alice/segformer-b0-city-ade")
    assert (work / "averaged" / "model.safetensors").is_file()
    scores = json.loads((work / "scores.json").read_text("utf-8"))
    assert [model["images"] for model in scores["models"]] == [2, 2, 2]
    assert (work / "mit-b5-daformer" / "config.json").is_file()


def test_python_of_the_readme_runs(readme_hub: TestHub, tmp_path: Path) -> None:
    code = "\n".join(blocks("python"))
    assert "lw.merge(" in code
    check = "\nassert type(model).__name__ == 'SegformerForSemanticSegmentation'\n"
    done = subprocess.run(
        [sys.executable, "-c", code + check],
        cwd=tmp_path,
        env=readme_hub.environment(tmp_path / "home") | {"LWMM_HUB_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "parameters merged" in done.stdout


def test_every_command_and_option_of_the_readme_exists_and_every_command_is_there() -> None:
    from lwmm_hub.cli.commands import cli

    named = set(re.findall(r"(?m)(?:^|`)lwmm-hub ([a-z]+)", README))
    assert named == set(cli.commands)
    parameters = [p for command in cli.commands.values() for p in command.params]
    options = {option for p in parameters for option in (*p.opts, *p.secondary_opts)}
    for option in re.findall(r"`(--[a-z-]+)", README):
        assert option in options, option


def test_public_names_of_the_readme_exist() -> None:
    import lwmm_hub

    for name in re.findall(r"\blw\.(\w+)", README):
        assert name in lwmm_hub.__all__, name


def test_targets_of_the_readme_are_in_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"`?make (\w+)`?", README):
        if target not in {"build"}:
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_linked_files_of_the_readme_are_there() -> None:
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / link).exists(), link


def test_the_family_of_the_contributing_guide_works_as_written() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    [code] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    found: dict[str, object] = {}
    exec(compile(code, "CONTRIBUTING.md", "exec"), found)
    table = found["TINY"]
    dialects = table.dialects  # type: ignore[attr-defined]
    assert dialects[1].names("block1.qk.weight") == (
        "blocks.0.attn.q.weight",
        "blocks.0.attn.k.weight",
    )
    assert table.rank("stem") < table.rank("blocks.0.attn.q")  # type: ignore[attr-defined]
