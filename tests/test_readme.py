"""The README says what is true: its commands and its Python run, on a Hub that has its models."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

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

from lwmm_hub.checkpoint import TensorEntry
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
        values = with_classes(finetuned(start, seed), classes, seed=classes)
        values["head.classifier.weight"] *= 20  # sure of what they say, as trained ones are
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
    assert len(commands) == 5
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
    assert "labels_used: false" in (work / "fitted" / "lwmm_recipe.yaml").read_text("utf-8")
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


def test_a_schedule_is_told_wherever_schedules_are() -> None:
    import lwmm_hub
    from lwmm_hub.card.describing import SCHEDULES as ON_CARDS
    from lwmm_hub.cli.commands import cli
    from lwmm_hub.schedule import SCHEDULES, TABLE

    assert set(ON_CARDS) == {*SCHEDULES, TABLE}
    [option] = [p for p in cli.commands["merge"].params if p.name == "schedule"]
    for told in (option.help, lwmm_hub.MergeOptions.__doc__, lwmm_hub.plan.__doc__, README):
        assert set(SCHEDULES) <= set(re.findall(r"\w+", told))


def test_targets_of_the_readme_are_in_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"`?make (\w+)`?", README):
        if target not in {"build"}:
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_linked_files_of_the_readme_are_there() -> None:
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / link).exists(), link


def contributing_examples(*names: str) -> list[Any]:
    """The tables that the code of the guide makes, as it stands, and nothing else is needed for."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    found = []
    for code, name in zip(re.findall(r"```python\n(.*?)```", text, re.DOTALL), names, strict=True):
        assert code.count("\n") < 30
        module: dict[str, Any] = {}
        exec(compile(code, "CONTRIBUTING.md", "exec"), module)
        found.append(module[name])
    return found


def test_the_families_of_the_contributing_guide_work_as_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lwmm_hub.families.mobilenet import MOBILENETV2
    from lwmm_hub.key_map import match_keys, naming, natural_order

    mobilenet, tiny = contributing_examples("MOBILENETV2", "TINY")
    assert mobilenet == MOBILENETV2  # the guide shows what is shipped
    monkeypatch.setattr(naming, "TABLES", (mobilenet, tiny))

    def entries(*keys: str, rows: int = 4) -> dict[str, TensorEntry]:
        return {key: TensorEntry(key, "F32", (rows, 2), "file", i) for i, key in enumerate(keys)}

    def layers(*models: dict[str, TensorEntry]) -> list[str]:
        key_map = match_keys(models, ["a", "b"], lambda: natural_order(list(models[0])))
        return [parameter.layer for parameter in key_map.shared]

    first = entries(
        "encoder.layer.0.attention.key.weight",
        "encoder.layer.0.attention.query.weight",
        "encoder.stem.weight",
    )
    second = entries("backbone.conv0.weight") | entries("backbone.block1.qk.weight", rows=8)
    assert layers(first, second) == layers(second, first)
    assert layers(first, second) == ["stem", "blocks.0.attn.q", "blocks.0.attn.k"]

    names = [
        "conv_1x1.convolution",
        "layer.10.conv_3x3.normalization",
        "layer.9.conv_3x3.convolution",
    ]
    names += ["conv_stem.first_conv.convolution"]
    classifier = entries(*(f"mobilenet_v2.{name}.weight" for name in names))
    segmenter = entries(*(f"wrapped.model.{name}.weight" for name in names))
    assert layers(classifier, segmenter) == names[::-1]


def test_the_lists_of_what_merges_are_those_that_the_tests_run() -> None:
    import support_tables

    lines = README.splitlines()
    for table in (support_tables.systems(), support_tables.hub_models()):
        start = lines.index(table[0])
        end = next(i for i in range(start, len(lines)) if not lines[i])
        assert lines[start:end] == table, "run tests/support_tables.py and put its lists in"
