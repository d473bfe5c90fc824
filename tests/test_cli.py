"""The command line as its users rely on it: schemas, formats, files and exit codes."""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from enumerators import (
    TINY,
    ancestor,
    finetuned,
    spell_nvlabs,
    spell_smp,
    write_pth,
    write_transformers_folder,
)
from safetensors.numpy import load_file, save_file
from stories import (
    PROGRAM,
    Command,
    Finished,
    Models,
    assert_complete,
    everything_below,
    leftovers,
    quiet_environment,
    run,
    sha256,
)

import lwmm_hub
from lwmm_hub.cli.commands import cli

OPTIONS = {
    "schedule": "linear",
    "start": 0.0,
    "end": 1.0,
    "gamma": 1.0,
    "endpoint": 1.0,
    "anchor_weight": None,
    "batch_norm": "linear",
    "scope": "auto",
}
# the fields that programs read, with their types
MODEL = {
    "role": str,
    "reference": str,
    "commit": str | None,
    "format": str,
    "files": list,
    "family": str | None,
    "parameters": int,
    "classes": int | None,
    "license": str | None,
    "weights": str,
}
MERGED = {
    "name": str,
    "layer": int,
    "key": str,
    "shape": list,
    "dtype": str,
    "sources": list,
    "weights": list,
}


def assert_done(found: Finished) -> Finished:
    assert found.code == 0, found.err
    assert found.err == ""
    return found


def keys_of(model: Path) -> set[str]:
    """The keys of a model's file, read without the package."""
    if model.is_dir():
        return set(load_file(model / "model.safetensors"))
    import torch

    content = torch.load(model, weights_only=True)
    return set(content.get("state_dict", content))


def has(row: dict[str, Any], fields: dict[str, Any]) -> None:
    for name, kind in fields.items():
        assert isinstance(row[name], kind), name


def assert_plan(plan: dict[str, Any], models: list[Path]) -> None:
    """Everything that programs read of a plan."""
    assert plan["version"] == 1
    assert [model["role"] for model in plan["models"]] == [
        "anchor",
        *["donor"] * (len(models) - 1),
    ]
    for model, path in zip(plan["models"], models, strict=True):
        has(model, MODEL)
        assert model["commit"] is None
        assert model["reference"] == str(path)
    assert isinstance(plan["scope_decided"], bool)
    assert plan["options"].keys() >= OPTIONS.keys()
    for number, layer in enumerate(plan["layers"]):
        assert layer["index"] == number
        assert isinstance(layer["name"], str)
        assert len(layer["weights"]) == len(models)
        assert sum(layer["weights"]) == pytest.approx(1, abs=1e-12)
    assert len({tensor["name"] for tensor in plan["merged"]}) == len(plan["merged"])
    for tensor in plan["merged"]:
        has(tensor, MERGED)
        assert 0 <= tensor["layer"] < len(plan["layers"])
        assert len(tensor["sources"]) == len(tensor["weights"]) == len(models)
        assert sum(tensor["weights"]) == pytest.approx(1, abs=1e-12)
        assert tensor["sources"][0] == tensor["key"]
        for source, weight in zip(tensor["sources"], tensor["weights"], strict=True):
            assert source is not None or weight == 0.0
        assert any(tensor["sources"][1:])
    # every key of the anchor is in exactly one of the two
    merged = {tensor["key"] for tensor in plan["merged"]}
    kept = [row["key"] for row in plan["kept"]]
    assert merged.isdisjoint(kept)
    assert len(kept) == len(set(kept))
    assert merged | set(kept) == keys_of(models[0])
    # every key of a donor is a source or unused
    for number, path in enumerate(models[1:], start=1):
        sources = {tensor["sources"][number] for tensor in plan["merged"]} - {None}
        unused = [row["key"] for row in plan["unused"] if row["model"] == number]
        assert sources.isdisjoint(unused)
        assert len(unused) == len(set(unused))
        assert sources | set(unused) == keys_of(path)
    for row in (*plan["kept"], *plan["unused"]):
        assert row["reason"]
    assert all(isinstance(warning, str) for warning in plan["warnings"])
    assert plan["cost"].keys() == {"read_bytes", "write_bytes", "download_bytes"}
    assert plan["cost"]["read_bytes"] > plan["cost"]["write_bytes"] > 0
    assert plan["cost"]["download_bytes"] == 0


# ---------------------------------------------------------------------- plan


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--check-weights",),
        ("--scope", "all"),
        ("--scope", "backbone"),
        ("--batch-norm", "anchor"),
        ("--schedule", "cosine", "--start", "0.25", "--end", "0.75", "--gamma", "2"),
        ("--schedule", "harmonic"),
        ("--schedule", "step", "--anchor-weight", "0.6", "--endpoint", "0.5"),
        ("--start", "stages.1.patch_embed.proj"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("names", ["anchor donor", "anchor pth", "pth anchor", "three", "dialects"])
def test_plan_json_is_what_others_rely_on(
    names: str, options: tuple[str, ...], lwmm: Command, tiny: Models, tmp_path: Path
) -> None:
    if names == "dialects":
        start = finetuned(ancestor(TINY, 1), 11)
        new = write_transformers_folder(tmp_path / "new", start, TINY, "new")
        smp = write_pth(tmp_path / "smp.pth", spell_smp(finetuned(start, 12), TINY))
        models = [tiny.wrapped_pth, new, smp]
    elif names == "three":
        models = [tiny.anchor, tiny.donor, tiny.third]
    else:
        models = [getattr(tiny, name) for name in names.split()]
    found = assert_done(lwmm("plan", *models, "--json", *options))
    assert_plan(found.data, models)
    asked = dict(zip(options[::2], options[1::2], strict=False))
    for name, value in asked.items():
        if name != "--check-weights":
            said = found.data["options"][name[2:].replace("-", "_")]
            assert said == (type(said)(value))
    decided = options[:1] in {("--check-weights",), ("--scope",)}
    assert found.data["scope_decided"] is decided
    assert sorted(os.listdir()) == []  # noqa: PTH208


def test_a_fused_tensor_counts_as_its_parts(lwmm: Command, tiny: Models) -> None:
    plan = assert_done(lwmm("plan", tiny.pth, tiny.donor, "--json")).data
    rows = {t["name"]: t for t in plan["merged"]}
    k, v = (rows[f"stages.0.blocks.0.attn.{part}.weight"] for part in "kv")
    assert k["key"] == v["key"] == "backbone.block1.0.attn.kv.weight"
    assert k["shape"] == v["shape"] == [8, 8]
    assert [k["sources"][1], v["sources"][1]] == [
        "segformer.encoder.block.0.0.attention.self.key.weight",
        "segformer.encoder.block.0.0.attention.self.value.weight",
    ]


def test_classes_and_reasons_are_said(lwmm: Command, tiny: Models) -> None:
    plan = assert_done(lwmm("plan", tiny.anchor, tiny.donor, "--json")).data
    assert [model["classes"] for model in plan["models"]] == [5, 6]
    kept = {row["key"]: row["reason"] for row in plan["kept"]}
    assert kept["decode_head.classifier.weight"] == (
        "shape differs: (5, 16, 1, 1) vs (6, 16, 1, 1)"
    )
    assert {row["key"] for row in plan["unused"]} == {
        "decode_head.classifier.weight",
        "decode_head.classifier.bias",
        "decode_head.batch_norm.num_batches_tracked",
    }


def test_a_dry_run_shows_the_decided_plan_and_writes_nothing(lwmm: Command, tiny: Models) -> None:
    models = (tiny.anchor, tiny.donor)
    dry = assert_done(lwmm("merge", *models, "--dry-run", "--json"))
    assert_plan(dry.data, [*models])
    assert dry.data["scope_decided"] is True
    assert dry.data == assert_done(lwmm("plan", *models, "--check-weights", "--json")).data
    assert "parameters merged" in assert_done(lwmm("merge", *models, "--dry-run")).out
    assert os.listdir() == []  # noqa: PTH208


def test_a_dry_run_of_a_recipe_writes_nothing_either(lwmm: Command, tiny: Models) -> None:
    models = (tiny.anchor, tiny.donor, "--gamma", "2")
    assert_done(lwmm("merge", *models))
    before = everything_below(Path())
    found = assert_done(
        lwmm("merge", "--recipe", "merged/lwmm_recipe.yaml", "--dry-run", "--json", "-o", "again")
    )
    assert everything_below(Path()) == before
    assert found.data["options"]["gamma"] == 2.0
    assert found.data["merged"] == lwmm("merge", *models, "--dry-run", "--json").data["merged"]


def test_a_plan_for_people_says_what_matters(lwmm: Command, tiny: Models) -> None:
    found = assert_done(lwmm("plan", tiny.anchor, tiny.donor))
    for words in (
        "2 models, linear layer weights: 161 parameters merged, 3 tensors kept from the anchor",
        "city",
        "rain",
        "stages.0",
        "Kept from the anchor",
        "shape differs: (5, 16, 1, 1) vs (6, 16, 1, 1): decode_head.classifier.weight",
        "Not used of rain",
        "The weights were not read yet",
        "Cost: reads",
    ):
        assert words in found.out
    assert "\x1b" not in found.out


def test_plan_and_card_tell_every_option_that_is_not_as_usual(lwmm: Command, tiny: Models) -> None:
    asked = (tiny.anchor, tiny.donor, "--gamma", "2", "--allow-nonfinite", "--allow-unrelated")
    told = "gamma 2.0, {0} True, {1} True"
    plan = lwmm("plan", *asked, "--max-shard-size", "1GB").out
    assert f"linear layer weights ({told.format('allow_unrelated', 'allow_nonfinite')}): " in plan
    assert lwmm("merge", *asked).code == 0
    card = Path("merged/README.md").read_text("utf-8")
    assert "Options: gamma 2.0, allow unrelated True and allow nonfinite True." in card


# ---------------------------------------------------------------------- merge


def test_merge_json_is_what_others_rely_on(lwmm: Command, tiny: Models) -> None:
    found = assert_done(lwmm("merge", tiny.anchor, tiny.donor, "--json")).data
    assert list(found) == [
        "output", "merged", "kept", "seconds", "bytes_written", "sha256", "commit_url", "warnings",
    ]  # fmt: skip
    weights = Path("merged/model.safetensors")
    assert found["output"] == "merged"
    assert found["sha256"] == {"model.safetensors": sha256(weights)}
    assert found["bytes_written"] == weights.stat().st_size
    assert found["commit_url"] is None
    assert found["warnings"] == []
    assert 0 < found["seconds"] < 60
    plan = lwmm("plan", tiny.anchor, tiny.donor, "--check-weights", "--json").data
    assert (found["merged"], found["kept"]) == (len(plan["merged"]), len(plan["kept"]))


def test_the_output_folder_holds_what_is_promised(lwmm: Command, tiny: Models) -> None:
    assert_done(lwmm("merge", tiny.anchor, tiny.donor))
    merged = Path("merged")
    assert sorted(path.name for path in merged.iterdir()) == [
        "README.md",
        "config.json",
        "layer_weights.svg",
        "lwmm_manifest.json",
        "lwmm_recipe.yaml",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    for name in ("config.json", "preprocessor_config.json"):
        assert (merged / name).read_bytes() == (tiny.anchor / name).read_bytes()
    assert leftovers(Path()) == []
    with (merged / "model.safetensors").open("rb") as file:
        head = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    assert head["__metadata__"]["format"] == "pt"
    # neither time, version nor path
    assert not re.search(r"\d", json.dumps(head["__metadata__"]))
    for path in merged.iterdir():
        if path.name != "lwmm_recipe.yaml":  # it may hold paths relative to itself until a push
            assert str(tiny.anchor.parent).encode() not in path.read_bytes(), path.name


def test_the_values_are_the_weighted_sum_of_the_plan(lwmm: Command, tiny: Models) -> None:
    assert_done(lwmm("merge", tiny.anchor, tiny.donor))
    plan = lwmm("plan", tiny.anchor, tiny.donor, "--json").data
    a, b = (load_file(folder / "model.safetensors") for folder in (tiny.anchor, tiny.donor))
    merged = load_file("merged/model.safetensors")
    for tensor in plan["merged"]:
        wanted = sum(
            weight * model[source].astype("f8")
            for weight, model, source in zip(
                tensor["weights"], (a, b), tensor["sources"], strict=True
            )
        )
        np.testing.assert_allclose(merged[tensor["key"]], wanted, rtol=1e-5, atol=1e-6)
    for row in plan["kept"]:
        np.testing.assert_array_equal(merged[row["key"]], a[row["key"]])


def test_threads_do_not_change_a_bit(lwmm: Command, tiny: Models) -> None:
    sums = {
        threads: lwmm(
            "merge", tiny.anchor, tiny.donor, "-o", f"with{threads}", "--threads", threads, "--json"
        ).data["sha256"]
        for threads in ("1", "2", "7")
    }
    assert len({str(found) for found in sums.values()}) == 1


def test_shards_and_their_index(lwmm: Command, tiny: Models) -> None:
    found = assert_done(
        lwmm("merge", tiny.anchor, tiny.donor, "--max-shard-size", "120kB", "--json")
    ).data
    assert list(found["sha256"]) == [f"model-{i:05d}-of-00003.safetensors" for i in (1, 2, 3)]
    index = json.loads(Path("merged/model.safetensors.index.json").read_text())
    for name in found["sha256"]:
        keys = {key for key, file in index["weight_map"].items() if file == name}
        assert set(load_file(f"merged/{name}")) == keys
    again = assert_done(lwmm("merge", "merged", tiny.third, "-o", "again", "--json")).data
    assert again["merged"] > 100
    assert_done(lwmm("verify", "merged"))


def test_tags_reach_the_card(lwmm: Command, tiny: Models) -> None:
    models = (tiny.anchor, tiny.donor)
    assert_done(lwmm("merge", *models, "--tag", "rainy", "--tag", "night"))
    recipe = ("--recipe", "merged/lwmm_recipe.yaml", "-o", "again")
    assert_done(lwmm("merge", *recipe, "--tag", "rainy", "--tag", "night"))
    for folder in ("merged", "again"):
        head = yaml.safe_load(Path(folder, "README.md").read_text().split("---")[1])
        assert {"rainy", "night"} <= set(head["tags"])


# ---------------------------------------------------------------------- formats


def test_human_output_ends_with_the_next_step(lwmm: Command, tiny: Models) -> None:
    found = assert_done(lwmm("merge", tiny.anchor, tiny.donor))
    first, second = found.out.splitlines()
    assert re.fullmatch(
        r"Merged 161 parameters, kept 3 tensors of the anchor, \d+\.\d s in merged", first
    )
    assert second == "Read merged/README.md, then publish it: lwmm-hub push merged OWNER/NAME"


@pytest.mark.parametrize("how", [("-q",), ("--quiet",), ("--format", "quiet")])
def test_quiet_output_is_the_folder(how: tuple[str, ...], lwmm: Command, tiny: Models) -> None:
    assert assert_done(lwmm("merge", tiny.anchor, tiny.donor, *how)).out == "merged\n"
    assert assert_done(lwmm("plan", tiny.anchor, tiny.donor, *how)).out == "161 merged, 3 kept\n"


def test_json_wins_over_other_formats(lwmm: Command, tiny: Models) -> None:
    wanted = assert_done(lwmm("plan", tiny.anchor, tiny.donor, "--json")).out
    for how in (("--format", "json"), ("--json", "-q"), ("--format", "agent", "--json")):
        assert assert_done(lwmm("plan", tiny.anchor, tiny.donor, *how)).out == wanted


def test_agents_get_rows_with_tabs(lwmm: Command, tiny: Models) -> None:
    models = (tiny.anchor, tiny.donor)
    plan = assert_done(lwmm("plan", *models, "--json")).data
    text = assert_done(lwmm("plan", *models, "--format", "agent")).out
    rows = [line.split("\t") for line in text.splitlines()]
    assert {row[0] for row in rows} == {"model", "merged", "kept", "unused", "cost"}
    merged = [row for row in rows if row[0] == "merged"]
    assert [row[1] for row in merged] == [tensor["name"] for tensor in plan["merged"]]
    for row, tensor in zip(merged, plan["merged"], strict=True):
        assert [float(weight) for weight in row[4].split(",")] == tensor["weights"]
    assert [row[1] for row in rows if row[0] == "kept"] == [row["key"] for row in plan["kept"]]
    assert "\x1b" not in text
    assert not set("█▏▎▍▌▋▊▉") & set(text)

    done = assert_done(lwmm("merge", *models, "--format", "agent")).out
    found = dict(line.split("\t", 1) for line in done.splitlines())
    assert found["output"] == "merged"
    assert found["merged"] == "161"
    assert found["sha256"] == f"model.safetensors\t{sha256(Path('merged/model.safetensors'))}"


@pytest.mark.parametrize("name", ["AI_AGENT", "AGENT", "CLAUDECODE", "CODEX_SANDBOX", "GEMINI_CLI"])
def test_an_agent_is_known_by_its_environment(
    name: str, lwmm: Command, tiny: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = (tiny.anchor, tiny.donor)
    wanted = lwmm("plan", *models, "--format", "agent").out
    people = lwmm("plan", *models).out
    monkeypatch.setenv(name, "1")
    assert lwmm("plan", *models).out == wanted
    assert lwmm("plan", *models, "--format", "human").out == people
    assert lwmm("plan", *models, "--json").data["version"] == 1
    monkeypatch.setenv(name, "")
    assert lwmm("plan", *models).out == people


def at_a_terminal(folder: Path, *arguments: str | Path, **environment: str) -> str:
    """What a command writes to a terminal of 24 lines and 80 columns."""
    pty, fcntl, termios = map(pytest.importorskip, ("pty", "fcntl", "termios"))
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = subprocess.Popen(
        [PROGRAM, *map(str, arguments)],
        cwd=folder,
        env=quiet_environment(TERM="xterm", **environment),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    text = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # how Linux says that nobody writes any more
            break
        if not piece:
            break
        text += piece
    os.close(ours)
    assert process.wait() == 0
    return text.decode()


def test_colours_are_for_people_at_a_terminal(tiny: Models, tmp_path: Path) -> None:
    plan = ("plan", tiny.anchor, tiny.donor)
    assert "\x1b[36m█" in at_a_terminal(tmp_path, *plan)
    assert "\x1b[36m█" in at_a_terminal(tmp_path, *plan, NO_COLOR="")  # as no-color.org has it
    assert "\x1b" not in at_a_terminal(tmp_path, *plan, NO_COLOR="1")
    assert "\x1b" not in at_a_terminal(tmp_path, *plan, AI_AGENT="1")
    assert "\x1b" not in at_a_terminal(tmp_path, *plan, "--json")
    piped = run(*plan, cwd=tmp_path)
    assert "\x1b" not in piped.out
    assert "█" in piped.out


def test_a_bar_counts_what_is_merged_where_somebody_waits(tiny: Models, tmp_path: Path) -> None:
    """The bytes of the plan, for models of any place; a merge that is done at once shows none."""
    bars = {"HF_HUB_DISABLE_PROGRESS_BARS": "0"}  # which the suite sets to 1
    small = at_a_terminal(tmp_path, "merge", tiny.anchor, tiny.donor, "-o", "small", **bars)
    assert "merging" not in small
    folder = Path(shutil.copytree(tiny.anchor, tmp_path / "large"))
    tensors = load_file(folder / "model.safetensors")
    tensors["beside"] = np.zeros(210_000_000, np.uint8)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    made = sum(tensor.nbytes for tensor in tensors.values()) // 10**6
    for what, *arguments in (
        ("merging", "merge", folder, tiny.donor, "-o", "out"),
        ("merging", "merge", "--recipe", "out/lwmm_recipe.yaml", "-o", "again"),
        ("verifying", "verify", "out"),
    ):
        shown = at_a_terminal(tmp_path, *arguments, **bars)
        assert re.search(rf"\r{what}: +\d+%\|█* *\| [\d.]+M/{made}M ", shown)
        assert re.search(rf"\r{what}: 100%\|█+\| {made}M/{made}M ", shown)
    shown = at_a_terminal(tmp_path, "convert", folder, "converted", **bars)  # of unknown size
    assert re.search(rf"\rconverting: {made}MB \[", shown)


def test_a_reader_that_goes_away_is_no_error(tiny: Models, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [PROGRAM, "plan", tiny.anchor, tiny.donor, "--json"],
        cwd=tmp_path,
        env=quiet_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    process.wait()
    assert err == b""


def test_text_that_a_terminal_cannot_show_is_no_error(tiny: Models, tmp_path: Path) -> None:
    found = run("plan", tiny.anchor, tiny.donor, cwd=tmp_path, PYTHONIOENCODING="ascii:replace")
    assert found.code == 0
    found = run("plan", tiny.anchor, tiny.donor, cwd=tmp_path, LC_ALL="C", PYTHONUTF8="0")
    assert found.code == 0, found.err


def test_text_that_an_encoding_lacks_is_no_error_and_data_loses_nothing(
    tiny: Models, tmp_path: Path
) -> None:
    """As on Windows, where a pipe or a file is cp1252."""
    name = shutil.copytree(tiny.anchor, tmp_path / "街").name
    found = run("plan", name, tiny.donor, cwd=tmp_path, PYTHONIOENCODING="cp1252")
    assert found.code == 0, found.err
    assert "  anchor   ?  " in found.out
    assert "0.50 to 0." in found.out
    found = run("plan", name, tiny.donor, "--json", cwd=tmp_path, PYTHONIOENCODING="cp1252")
    assert found.data["models"][0]["label"] == name


# ---------------------------------------------------------------------- help


def test_help_and_version(lwmm: Command) -> None:
    assert assert_done(lwmm("--version")).out == f"lwmm-hub {lwmm_hub.__version__}\n"
    top = assert_done(lwmm("-h")).out
    assert top == assert_done(lwmm("--help")).out
    for command in cli.commands:
        assert f"\n  {command} " in top
        text = assert_done(lwmm(command, "-h")).out
        assert text == assert_done(lwmm(command, "--help")).out
        printing = text.partition("\nPrinting:\n")[2]
        for option in ("--format", "--json", "-q"):
            assert option in printing, "not in a section of its own"
        assert max(map(len, text.splitlines())) <= 80
    for command in ("merge", "plan"):
        text = lwmm(command, "-h").out
        for option in (
            "--schedule", "--start", "--end", "--gamma", "--anchor-weight", "--endpoint",
            "--batch-norm", "--scope", "--allow-unrelated", "--allow-nonfinite", "--dtype",
            "--max-shard-size",
        ):  # fmt: skip
            assert option in text
    text = lwmm("merge", "-h").out
    for option in (
        "-o", "--push", "--private", "--public", "--create-pr", "--accept-license", "--license",
        "--recipe", "--dry-run", "--threads", "--overwrite",
    ):  # fmt: skip
        assert option in text
    sections = re.findall(r"(?m)^(\w[\w ]*):$", text)
    assert sections == [
        "Options", "Layer weights", "What merges", "How it is stored", "Layer weights from images",
        "Scores on the card", "Publishing", "Printing",
    ]  # fmt: skip
    for option in cli.commands["merge"].params[1:]:
        assert re.search(rf"(?m)^  (-\w, )?{option.opts[-1]}\b", text)
    listed = top.partition("Commands:\n")[2].partition("\n\n")[0].splitlines()
    assert sorted(line.split()[0] for line in listed) == sorted(cli.commands)
    assert all(line.endswith(".") and not line.endswith("...") for line in listed)
    assert "--threshold" in lwmm("drift", "-h").out
    assert "--parent" in lwmm("verify", "-h").out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize(
    ("typed", "found"),
    [
        (["pl"], ["plan"]),
        (["merge", "org/a", "--sched"], ["--schedule"]),
        (["plan", "--schedule", "c"], ["cosine"]),
        (["drift", "--match", "n"], ["names"]),
        (["merge", "--output-format", "p"], ["pth"]),
        (["plan", "ci"], ["file"]),
        (["merge", "--recipe", "me"], ["file"]),
        (["push", "me"], ["file"]),
    ],
)
def test_shells_complete_commands_options_their_values_and_paths(
    shell: str, typed: list[str], found: list[str], tmp_path: Path
) -> None:
    words = {"COMP_WORDS": shlex.join(["lwmm-hub", *typed]), "COMP_CWORD": str(len(typed))}
    if shell == "fish":
        words["COMP_CWORD"] = typed[-1]
    done = run(cwd=tmp_path, _LWMM_HUB_COMPLETE=f"{shell}_complete", **words)
    assert done.code == 0, done.err
    told = set(re.split(r"[,\t\n]", done.out))
    assert set(found) <= told
    assert {"cosine", "linear", "names", "plan", "file"} & told <= set(found)


def test_exit_codes_of_a_process(tiny: Models, tmp_path: Path) -> None:
    def code(*arguments: str | Path) -> int:
        return run(*arguments, cwd=tmp_path).code

    assert code("merge", tiny.anchor, tiny.donor) == 0
    assert code("merge", tiny.anchor, tiny.donor) == 1
    assert code("merge", tiny.anchor) == 2
    assert code("merge", tiny.anchor, tiny.stranger, "-o", "other") == 4
    with (tmp_path / "merged/model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x55")
    assert code("verify", "merged") == 5


# ---------------------------------------------------------------------- recipes


def test_a_recipe_runs_again_bit_for_bit(lwmm: Command, tiny: Models) -> None:
    first = lwmm("merge", tiny.anchor, tiny.donor, tiny.pth, "--gamma", "1.7", "--json").data
    again = lwmm("merge", "--recipe", "merged/lwmm_recipe.yaml", "-o", "again", "--json").data
    assert first["sha256"] == again["sha256"]
    for key in ("merged", "kept", "bytes_written", "warnings"):
        assert first[key] == again[key]
    assert lwmm("merge", "--recipe", "again/lwmm_recipe.yaml", "-o", "third").code == 0
    assert assert_complete(Path("third")) == first["sha256"]


def test_paths_in_a_recipe_are_relative_to_it(
    lwmm: Command, tiny: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = tmp_path / "here"
    for model in (tiny.anchor, tiny.donor):
        shutil.copytree(model, start / "models" / model.name)
    first = lwmm("merge", "models/city", "./models/rain", "-o", "run/out", "--json").data
    recipe = yaml.safe_load((start / "run/out/lwmm_recipe.yaml").read_text())
    assert [model["reference"] for model in recipe["models"]] == [
        "../../models/city",
        "../../models/rain",
    ]

    def reruns(*arguments: str | Path) -> None:
        found = lwmm("merge", "--recipe", *arguments, "--json")
        assert found.code == 0, found.err
        assert found.data["sha256"] == first["sha256"]

    elsewhere = tmp_path / "else" / "where"
    elsewhere.mkdir(parents=True)
    monkeypatch.chdir(elsewhere)  # called from another folder
    reruns("../../here/run/out/lwmm_recipe.yaml")
    reruns(start / "run/out/lwmm_recipe.yaml", "-o", "absolute")
    monkeypatch.chdir(start / "run/out")
    reruns("lwmm_recipe.yaml", "-o", "../beside")
    shutil.move(start, tmp_path / "moved")  # everything moved together
    monkeypatch.chdir(tmp_path / "moved")
    reruns("run/out/lwmm_recipe.yaml", "-o", "again")
    (tmp_path / "moved/recipe.yaml").write_bytes(
        (tmp_path / "moved/run/out/lwmm_recipe.yaml").read_bytes()
    )  # the recipe alone moved
    found = lwmm("merge", "--recipe", "recipe.yaml", "-o", "lost")
    assert found.code == 1
    assert "the local model 'city' is not where the recipe says" in found.err
    assert "--parent city=PATH" in found.err


def test_odd_names_survive_a_recipe(lwmm: Command, tiny: Models) -> None:
    names = ("a b: #c", "-x", "é 漢", "'q\"", "no")
    for name in names:
        shutil.copytree(tiny.donor, Path("odd", name))
    models = [f"odd/{name}" for name in names]
    first = lwmm("merge", tiny.anchor, *models, "-o", "odd/out", "--json")
    assert first.code == 0, first.err
    again = lwmm("merge", "--recipe", "odd/out/lwmm_recipe.yaml", "-o", "again", "--json")
    assert again.code == 0, again.err
    assert again.data["sha256"] == first.data["sha256"]


def test_a_decided_scope_stays_decided(lwmm: Command, tmp_path: Path) -> None:
    """A recipe keeps the head that the weights ruled out."""
    start, other = ancestor(TINY, 1), ancestor(TINY, 2)
    own = finetuned(start, 1)
    foreign = finetuned(start, 2) | {k: v for k, v in other.items() if k.startswith("head")}
    write_transformers_folder(tmp_path / "a", own, TINY)
    write_transformers_folder(tmp_path / "b", foreign, TINY)
    first = lwmm("merge", tmp_path / "a", tmp_path / "b", "--json")
    assert first.code == 0, first.err
    recipe = yaml.safe_load(Path("merged/lwmm_recipe.yaml").read_text())
    assert recipe["models"][1]["kept_parts"] == ["head"]
    plan = json.loads(Path("merged/lwmm_manifest.json").read_text())["plan"]
    assert plan["scope_decided"] is True
    assert all(not tensor["key"].startswith("decode_head") for tensor in plan["merged"])
    assert "unrelated" in next(
        row["reason"] for row in plan["kept"] if row["key"] == "decode_head.linear_fuse.weight"
    )
    again = lwmm("merge", "--recipe", "merged/lwmm_recipe.yaml", "-o", "again", "--json").data
    assert again["sha256"] == first.data["sha256"]
    assert lwmm("verify", "merged").code == 0


# ---------------------------------------------------------------------- verify


@pytest.fixture
def merged(lwmm: Command, tiny: Models) -> Path:
    """A merge of copies of two models, called from where all of them lie."""
    shutil.copytree(tiny.anchor, "city")
    shutil.copytree(tiny.donor, "rain")
    assert lwmm("merge", "city", "rain").code == 0
    return Path("merged")


def test_verify_agrees_with_a_merge(merged: Path, lwmm: Command) -> None:
    before = everything_below(Path())
    found = assert_done(lwmm("verify", merged, "--json")).data
    assert found == {"verified": "merged", "sha256": assert_complete(merged)}
    text = assert_done(lwmm("verify", merged)).out
    assert text == "merged is what its recipe gives: 1 file, same sha256.\n"
    row = assert_done(lwmm("verify", merged, "--format", "agent")).out
    assert row == f"model.safetensors\t{found['sha256']['model.safetensors']}\n"
    assert everything_below(Path()) == before


@pytest.mark.parametrize("name", ["merged", "two words", "again"])
def test_the_commands_of_a_card_run_as_it_prints_them(
    name: str, merged: Path, lwmm: Command
) -> None:
    """From the folder that holds the merged one, one after the other."""
    assert_done(lwmm("merge", "city", "rain", "-o", name, *["--overwrite"] * (name == "merged")))
    card = (Path(name) / "README.md").read_text("utf-8")
    commands = card.split("## Reproduce")[1].split("```bash\n")[1].split("```")[0].splitlines()
    assert commands[0].endswith(f", from the folder that holds ./{name}")
    assert len(commands) == 3
    for command in commands[1:]:
        program, *arguments = shlex.split(command)
        assert program == "lwmm-hub"
        assert_done(lwmm(*arguments))
    assert assert_complete(Path(f"{name}-again")) == assert_complete(Path(name))


def tampered(merged: Path, what: str) -> None:
    if what == "weights":
        with (merged / "model.safetensors").open("r+b") as file:
            file.seek(-2, os.SEEK_END)
            file.write(b"\x01")
    elif what == "length":
        with (merged / "model.safetensors").open("ab") as file:
            file.write(b"\x00")
    elif what == "no weights":
        (merged / "model.safetensors").unlink()
    elif what == "manifest":
        path = merged / "lwmm_manifest.json"
        manifest = json.loads(path.read_text())
        manifest["output"]["files"]["model.safetensors"]["sha256"] = "0" * 64
        path.write_text(json.dumps(manifest))
    elif what == "recipe":
        path = merged / "lwmm_recipe.yaml"
        path.write_text(path.read_text().replace("gamma: 1.0", "gamma: 1.5"))
    elif what == "parent":
        tensors = load_file("rain/model.safetensors")
        tensors["segformer.encoder.patch_embeddings.0.proj.bias"] += 1
        save_file(tensors, "rain/model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    "what", ["weights", "length", "no weights", "manifest", "recipe", "parent"]
)
def test_verify_finds_what_was_changed(what: str, merged: Path, lwmm: Command) -> None:
    tampered(merged, what)
    for more in ((), ("--json",)):
        found = lwmm("verify", merged, *more)
        assert found.code == 5, found.err
        assert found.out == ""
        assert found.err.count("\n") == 1
        assert "merged is not what its recipe says: model.safetensors" in found.err
        where = "a new merge" if what in {"recipe", "parent"} else "the files in place"
        assert where in found.err


@pytest.mark.parametrize("what", ["a label", "processor", "no processor", "no JSON", "tokenizer"])
def test_verify_finds_what_was_changed_beside_the_weights(
    what: str, merged: Path, lwmm: Command
) -> None:
    changed = {"tokenizer": "tokenizer.json", "processor": "preprocessor_config.json"}
    changed |= {"no processor": "preprocessor_config.json"}
    path = merged / changed.get(what, "config.json")
    if what == "a label":
        path.write_text(path.read_text().replace('"road"', '"sky"'))
    elif what == "processor":
        path.write_text(path.read_text().replace("255", "254").replace("0.0039", "0.0038"))
    elif what == "no processor":
        path.unlink()
    else:
        path.write_text("{")
    found = lwmm("verify", merged)
    assert (found.code, found.out, found.err.count("\n")) == (5, "", 1)
    assert f"merged is not what its recipe says: its {path.name}" in found.err


def test_verify_takes_a_config_as_a_push_leaves_it(merged: Path, lwmm: Command) -> None:
    """Older transformers wrote where a model lay, which a push takes out."""
    path = Path("city/config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_name_or_path": "/root/x"}))
    assert_done(lwmm("verify", merged))


def test_local_parents_without_a_path_are_asked_for(
    merged: Path, lwmm: Command, tmp_path: Path
) -> None:
    """The recipe in a manifest is the public one: it names local parents by label."""
    public = json.loads((merged / "lwmm_manifest.json").read_text())["recipe"]
    (merged / "lwmm_recipe.yaml").write_text(public)
    found = lwmm("verify", merged)
    assert found.code == 1
    assert "'city'" in found.err
    assert "--parent city=PATH" in found.err
    found = lwmm("verify", merged, "--parent", "city=city")
    assert found.code == 1
    assert "--parent rain=PATH" in found.err
    both = ("--parent", "city=./city", "--parent", f"rain={tmp_path / 'here' / 'rain'}")
    assert_done(lwmm("verify", merged, *both))
    found = lwmm("verify", merged, *both, "--parent", "snow=city")
    assert found.code == 1
    assert "no local model 'snow', it has: 'city', 'rain'" in found.err
    again = lwmm("merge", "--recipe", merged / "lwmm_recipe.yaml", *both, "-o", "again", "--json")
    assert again.data["sha256"] == assert_complete(merged)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "has no lwmm_manifest.json"),
        (b"", "cannot be read"),
        (b"[]", "not a manifest of version 1"),
        (b'{"version": 9}', "not a manifest of version 1"),
        (b'{"version": 1}', "lwmm_manifest.json"),
        (b'{"version": 1, "output": {"files": {"../x": {"sha256": "0"}}}}', "lwmm_manifest.json"),
    ],
)
@pytest.mark.parametrize("command", ["verify", "card"])
def test_a_folder_that_is_no_merge_is_refused(
    command: str, content: bytes | None, words: str, lwmm: Command
) -> None:
    Path("odd").mkdir()
    if content is not None:
        Path("odd/lwmm_manifest.json").write_bytes(content)
    before = everything_below(Path())
    found = lwmm(command, "odd", "--json")
    assert found.code == 1, found.err
    assert found.out == ""
    assert found.err.count("\n") == 1
    assert words in found.err
    assert "internal error" not in found.err
    assert everything_below(Path()) == before


@pytest.mark.parametrize(
    ("arguments", "streams", "code", "err"),
    [
        (["--version"], ">&-", 0, ""),
        (["plan", "city"], "2>&-", 2, ""),
        (["plan", "city"], "2>/dev/full", 2, ""),
        (["--version"], ">/dev/full", 1, "No space left on device"),
        (["plan", "city", "rain", "--json"], ">/dev/full", 1, "No space left on device"),
        (["merge", "city", "rain", "-o", "m"], ">/dev/full", 1, "No space left on device"),
        (["plan", "city", "rain"], "| (exec <&-; sleep 2)", 1, ""),
    ],
)
def test_streams_that_nobody_reads_or_that_are_full(
    arguments: list[str], streams: str, code: int, err: str, tiny: Models, tmp_path: Path
) -> None:
    if "/dev/full" in streams and not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    for name, model in (("city", tiny.anchor), ("rain", tiny.donor)):
        shutil.copytree(model, tmp_path / name)
    # where Python buffers nothing, nothing is left to fail at the end
    environment = {k: v for k, v in quiet_environment().items() if k != "PYTHONUNBUFFERED"}
    command = f"set -o pipefail; {shlex.join([str(PROGRAM), *arguments])} {streams}"
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert err in done.stderr
    assert done.stderr.count("\n") == bool(err)  # nothing of the interpreter's own


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to everything in a manifest; of lists to their first row."""
    rows = value.items() if isinstance(value, dict) else ()
    rows = list(enumerate(value))[:1] if isinstance(value, list) else rows
    for key, inner in rows:
        yield (*path, key)
        yield from places(inner, (*path, key))


@pytest.mark.parametrize("change", ["another type", "gone"])
def test_a_manifest_that_was_changed_by_hand_is_an_error_of_ours(
    change: str, merged: Path, lwmm: Command
) -> None:
    file = merged / "lwmm_manifest.json"
    whole = json.loads(file.read_text())
    whole["scores"] = {
        "dataset": {"reference": "streets", "split": "val", "images": 9},
        "models": [{"reference": "merged", "commit": None, "miou": 0.5, "iou": {"road": 0.9}}],
        "notes": ["nothing to add"],
    }
    whole["plan"]["weights_from"] = {"method": "fit", "images": "dusk", "held_back": 2, "seed": 0}
    file.write_text(json.dumps(whole))
    assert lwmm("card", merged).code == 0
    refused = 0
    for path in list(places(whole)):
        manifest = copy.deepcopy(whole)
        holder = manifest
        for key in path[:-1]:
            holder = holder[key]
        if change == "gone":
            del holder[path[-1]]
        else:
            other = ["x"] if isinstance(holder[path[-1]], str) else "x"
            holder[path[-1]] = other
        file.write_text(json.dumps(manifest))
        found = lwmm("card", merged)
        assert found.code in {0, 1}, (path, found.err)
        assert "internal error" not in found.err, path
        if found.code:
            assert (found.out, found.err.count("\n")) == ("", 1), path
            refused += 1
    assert refused > 20


# ---------------------------------------------------------------------- card


def test_a_card_is_rendered_again_byte_for_byte(merged: Path, lwmm: Command) -> None:
    card, figure = (merged / "README.md"), (merged / "layer_weights.svg")
    before = card.read_bytes(), figure.read_bytes()
    card.write_text("spoiled")
    figure.unlink()
    assert assert_done(lwmm("card", merged)).out == f"Wrote {card}\n"
    assert (card.read_bytes(), figure.read_bytes()) == before
    assert assert_done(lwmm("card", merged, "--json")).data == {"card": str(card)}
    assert (card.read_bytes(), figure.read_bytes()) == before


# ---------------------------------------------------------------------- drift


def test_drift_is_shown_per_stage(lwmm: Command, tiny: Models) -> None:
    text = assert_done(lwmm("drift", tiny.anchor, tiny.donor, tiny.third)).out
    assert text.startswith("Drift from city; changed: share of entries moved by over 10%")
    for words in ("\n  rain\n", "\n  night\n", "  stages.0 ", "  stages.3 ", "distance", "cosine"):
        assert words in text
    assert "over 50%" in lwmm("drift", tiny.anchor, tiny.donor, "--threshold", "0.5").out


def test_drift_json_agrees_with_numpy(lwmm: Command, tiny: Models) -> None:
    found = assert_done(lwmm("drift", tiny.anchor, tiny.donor, "--threshold", "0.2", "--json")).data
    assert found["threshold"] == 0.2
    assert found["models"] == ["city", "rain"]
    plan = lwmm("plan", tiny.anchor, tiny.donor, "--json").data
    assert [row["name"] for row in found["drift"]] == [row["name"] for row in plan["merged"]]
    sources = {row["name"]: row["sources"] for row in plan["merged"]}
    a, b = (load_file(folder / "model.safetensors") for folder in (tiny.anchor, tiny.donor))
    for row in found["drift"]:
        x, y = (m[key].astype("f8") for m, key in zip((a, b), sources[row["name"]], strict=True))
        gap = abs(x - y)
        assert row["changed"] == pytest.approx((gap > 0.2 * abs(x)).mean(), abs=1e-6)
        assert row["distance"] == pytest.approx(np.linalg.norm(gap) / np.linalg.norm(x))
        cosine = (x * y).sum() / np.linalg.norm(x) / np.linalg.norm(y)
        assert row["cosine"] == pytest.approx(cosine)
    rows = assert_done(lwmm("drift", tiny.anchor, tiny.donor, "--format", "agent")).out
    assert len(rows.splitlines()) == len(found["drift"])


def test_drift_names_what_is_not_finite_and_shows_the_threshold_as_given(
    lwmm: Command, tiny: Models, tmp_path: Path
) -> None:
    bad = shutil.copytree(tiny.donor, tmp_path / "bad")
    tensors = load_file(bad / "model.safetensors")
    key = "segformer.encoder.patch_embeddings.0.proj.weight"
    tensors[key].reshape(-1)[:2] = np.nan, np.inf
    save_file(tensors, bad / "model.safetensors", metadata={"format": "pt"})
    how = ("drift", tiny.anchor, bad, "--threshold", "0.001")
    found = assert_done(lwmm(*how, "--json")).data
    [row] = [row for row in found["drift"] if row["name"] == "stages.0.patch_embed.proj.weight"]
    assert (row["distance"], row["cosine"]) == (None, None)
    sound = assert_done(lwmm("drift", tiny.anchor, tiny.donor, *how[3:], "--json")).data
    assert "warnings" not in sound
    [before] = [other for other in sound["drift"] if other["name"] == row["name"]]
    assert row["changed"] >= before["changed"] > 0.9
    said = "bad has NaN or infinite values in stages.0.patch_embed.proj.weight: such"
    assert found["warnings"][0].startswith(said)
    done = lwmm(*how)
    assert done.code == 0
    assert done.err.startswith(f"warning: {said}")
    assert "moved by over 0.1%; means" in done.out


@pytest.mark.parametrize(("name", "begin"), [("d.png", b"\x89PNG"), ("d.svg", b"<?xml")])
def test_drift_is_drawn(name: str, begin: bytes, lwmm: Command, tiny: Models) -> None:
    found = lwmm("drift", tiny.anchor, tiny.donor, "--plot", name)
    assert found.code == 0, found.err
    assert found.err == f"Drew {name}\n"
    assert Path(name).read_bytes().startswith(begin)


def test_every_kind_of_parameter_is_drawn(lwmm: Command, tmp_path: Path) -> None:
    """Tokens, scales and position tables are neither weight nor bias: their drift was not seen."""
    random = np.random.default_rng(0)
    shared = random.standard_normal((8, 8)).astype("f4")
    for name in ("a", "d"):
        moved = random.standard_normal((1, 8)).astype("f4")
        tensors = {"backbone.0.weight": shared, "backbone.0.cls_token": moved}
        save_file(tensors, tmp_path / f"{name}.safetensors")
    models = (tmp_path / "a.safetensors", tmp_path / "d.safetensors")
    assert lwmm("drift", *models, "--plot", "d.svg").code == 0
    drawn = Path("d.svg").read_text("utf-8")
    assert "<!-- weight -->" in drawn
    assert "<!-- other -->" in drawn
    assert "<!-- bias -->" not in drawn


@pytest.mark.parametrize("name", ["d.png", "d.svg", "d.pdf"])
def test_a_plot_is_drawn_over_a_figure_and_over_nothing_else(
    name: str, lwmm: Command, tiny: Models
) -> None:
    file = Path(name)
    for content in (None, None, b""):  # nothing, the figure of the first time, an empty file
        if content is not None:
            file.write_bytes(content)
        assert lwmm("drift", tiny.anchor, tiny.donor, "--plot", name).code == 0
        assert file.stat().st_size > 1000
    for content in (b"precious", b"precious\x89PNG\r\n\x1a\n%PDF-", None):
        file.unlink()
        if content is None:
            os.mkfifo(file)
        else:
            file.write_bytes(content)
        found = lwmm("drift", tiny.anchor, tiny.donor, "--plot", name)
        assert found.code == 2
        assert found.err == (
            f"lwmm-hub: {name} exists and holds no figure. Name another file with --plot.\n"
        )
        assert content is None or file.read_bytes() == content


def test_a_plot_that_cannot_be_drawn_is_refused(lwmm: Command, tiny: Models) -> None:
    for name, words in (("d.xyz", ".png"), ("nowhere/d.png", "nowhere")):
        found = lwmm("drift", tiny.anchor, tiny.donor, "--plot", name, "--json")
        assert found.code in {1, 2}
        assert "internal error" not in found.err
        assert words in found.err
        assert found.out == ""
        assert found.err.count("\n") == 1
    assert everything_below(Path()) == {}


# ---------------------------------------------------------------------- .pth


def test_a_pth_anchor_gives_safetensors_or_its_own_nesting(lwmm: Command, tiny: Models) -> None:
    import torch

    first = assert_done(lwmm("merge", tiny.wrapped_pth, tiny.pth, "--json")).data
    assert list(first["sha256"]) == ["model.safetensors"]
    assert set(load_file("merged/model.safetensors")) == keys_of(tiny.wrapped_pth)
    again = assert_done(
        lwmm("merge", tiny.wrapped_pth, tiny.pth, "--output-format", "pth", "-o", "p", "--json")
    ).data
    (name,) = again["sha256"]
    content = torch.load(Path("p", name), weights_only=True)
    assert list(content) == ["state_dict"]
    merged = load_file("merged/model.safetensors")
    assert list(content["state_dict"]) == list(
        torch.load(tiny.wrapped_pth, weights_only=True)["state_dict"]
    )
    for key, value in content["state_dict"].items():
        np.testing.assert_array_equal(value.numpy(), merged[key])
    assert sha256(Path("p", name)) == again["sha256"][name]
    assert lwmm("verify", "p").code == 0


def test_another_copy_of_the_weights_can_be_picked(lwmm: Command, tmp_path: Path) -> None:
    start = ancestor(TINY, 1)
    copies = {
        "model.": finetuned(start, 1),
        "ema_model.": finetuned(start, 2),
        "imnet_model.": finetuned(start, 3),
    }
    together = {
        prefix + key: value
        for prefix, values in copies.items()
        for key, value in spell_nvlabs(values, TINY).items()
    }
    path = write_pth(tmp_path / "latest.pth", together, wrapper="state_dict")
    alone = write_pth(tmp_path / "ema.pth", spell_nvlabs(copies["ema_model."], TINY))
    donor = write_pth(tmp_path / "donor.pth", spell_nvlabs(finetuned(start, 4), TINY))
    ema = lwmm("merge", f"{path}?weights=ema", donor, "--json")
    wanted = lwmm("merge", alone, donor, "-o", "wanted", "--json")
    assert ema.code == 0, ema.err
    assert ema.data["sha256"] == wanted.data["sha256"]
    student = lwmm("merge", path, donor, "-o", "student", "--json")
    assert student.data["sha256"] != wanted.data["sha256"]
    assert lwmm("verify", "merged").code == 0
