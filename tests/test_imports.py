"""What a command loads and whom it calls: `--help` is instant, local merges are quiet and light."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from clients import python
from enumerators import B0, TINY, ancestor, finetuned, spell_smp, write_pth
from hub import TestHub
from stories import PROGRAM, Models, quiet_environment

import lwmm_hub as lw

STREET = Path(__file__).parents[1] / "examples" / "street"
HEAVY = {
    "torch",
    "transformers",
    "huggingface_hub",
    "datasets",
    "evaluate",
    "scipy",
    "matplotlib",
    "jinja2",
}

# Runs a command and notes what was loaded and which doors to the network were knocked at.
WATCHER = """
import json, sys
knocks = []
def watch(event, arguments):
    if event in {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"}:
        knocks.append(f"{event} {arguments[1:]}")
        raise ConnectionError("there is no network in this test")
    if event in {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"}:
        knocks.append(event)
sys.addaudithook(watch)
note, *arguments = sys.argv[1:]
code = 0
if arguments:
    from lwmm_hub.cli import main
    try:
        main(arguments)
    except SystemExit as end:
        code = end.code
else:
    import lwmm_hub
with open(note, "w") as file:
    json.dump({"code": code, "modules": sorted(sys.modules), "knocks": knocks}, file)
"""


def test_names_that_messages_give_are_there_after_the_one_import() -> None:
    """Whatever else was imported before: each in a process of its own."""
    from lwmm_hub.errors import PYTHON
    from lwmm_hub.weight_table import FOUND

    names = {name for name in PYTHON.values() if name.startswith("lw.")}
    names |= {f"lw.{name}" for name in FOUND.values()} | {"lw.controls.controls_of"}
    assert "lw.fitting.drift_layer_weights" in names
    for name in sorted(names):
        code = f"import lwmm_hub as lw; assert callable({name})"
        subprocess.run([sys.executable, "-c", code], check=True)


def watched(folder: Path, *arguments: str | Path) -> set[str]:
    """The top-level packages and our own modules that a command loads; it asks no network."""
    note = folder / "note.json"
    done = subprocess.run(
        [sys.executable, "-c", WATCHER, note, *map(str, arguments)],
        cwd=folder,
        env=quiet_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(note.read_text())
    assert found["code"] == 0, done.stderr
    assert found["knocks"] == []
    return {m if m.startswith("lwmm_hub") else m.partition(".")[0] for m in found["modules"]}


def test_importing_the_package_loads_nothing_heavy(tmp_path: Path) -> None:
    loaded = watched(tmp_path)
    assert loaded.isdisjoint({*HEAVY, "numpy", "ml_dtypes", "click", "yaml"})
    assert {m for m in loaded if m.startswith("lwmm_hub")} == {"lwmm_hub"}


@pytest.mark.parametrize("arguments", [["--help"], ["merge", "-h"], ["plan", "-h"], ["--version"]])
def test_help_loads_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    loaded = watched(tmp_path, *arguments)
    assert loaded.isdisjoint({*HEAVY, "numpy", "ml_dtypes", "yaml"})


def test_help_is_quick(tmp_path: Path) -> None:
    def cpu_seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [PROGRAM, "--help"], cwd=tmp_path, env=quiet_environment(), capture_output=True,
            check=True,
        )  # fmt: skip
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

    assert min(cpu_seconds() for _ in range(3)) < 0.5


@pytest.mark.parametrize("kind", ["safetensors", "zip archives", "both"])
def test_tabled_families_are_planned_and_merged_without_torch(
    kind: str, tiny: Models, tmp_path: Path
) -> None:
    models = {
        "safetensors": (tiny.anchor, tiny.donor, tiny.third),
        "zip archives": (tiny.pth, tiny.wrapped_pth),
        "both": (tiny.anchor, tiny.pth, tiny.wrapped_pth),
    }[kind]
    assert watched(tmp_path, "plan", *models).isdisjoint(HEAVY)
    assert watched(tmp_path, "plan", *models, "--check-weights", "--json").isdisjoint(HEAVY)
    assert watched(tmp_path, "merge", *models).isdisjoint(HEAVY)
    assert watched(tmp_path, "merge", *models, "--dry-run").isdisjoint(HEAVY)
    assert watched(tmp_path, "verify", "merged").isdisjoint(HEAVY - {"huggingface_hub"})
    assert watched(tmp_path, "card", "merged").isdisjoint(HEAVY)
    assert watched(tmp_path, "drift", *models).isdisjoint(HEAVY)
    again = watched(tmp_path, "merge", "--recipe", "merged/lwmm_recipe.yaml", "-o", "again")
    assert again.isdisjoint(HEAVY)


def test_another_dialect_needs_no_torch_either(tiny: Models, tmp_path: Path) -> None:
    smp = write_pth(tmp_path / "smp.pth", spell_smp(finetuned(ancestor(TINY, 1), 9), TINY))
    assert watched(tmp_path, "merge", smp, tiny.pth).isdisjoint(HEAVY)


def test_a_fitted_merge_needs_neither_its_images_nor_torch(tmp_path: Path, hub: TestHub) -> None:
    """Run again, verified, described and pushed; only fitting it needed them."""
    parents = [STREET / name for name in ("anchor", "donor")]
    images = [np.full((64, 64, 3), 40 * i, np.uint8) for i in range(4)]
    for i, image in enumerate(images):
        image[i * 10 :, 20:] = 200
    plan = lw.fit_layer_weights(lw.plan(*parents), images, steps=2, lr=0.3, states="")
    lw.merge(plan, output=tmp_path / "fitted")
    recipe = tmp_path / "fitted" / "lwmm_recipe.yaml"
    assert "method: fit" in recipe.read_text("utf-8")
    assert watched(tmp_path, "merge", "--recipe", recipe, "-o", "again").isdisjoint(HEAVY)
    assert watched(tmp_path, "verify", "fitted").isdisjoint(HEAVY - {"huggingface_hub"})
    assert watched(tmp_path, "card", "fitted").isdisjoint(HEAVY)
    again, card = tmp_path / "again", (tmp_path / "fitted" / "README.md").read_text("utf-8")
    assert (again / "README.md").read_text("utf-8").count("Layer weights: fitted") == 1
    assert "Layer weights: fitted" in card
    code = """
        import json, sys
        for name in ("torch", "transformers", "datasets", "PIL"):
            sys.modules[name] = None  # an import of it fails
        import lwmm_hub as lw
        print(json.dumps(lw.publish(sys.argv[1], "alice/fitted", license="mit")))
    """
    pushed = python(code, again, hub=hub, home=tmp_path / "home", cwd=tmp_path, token="alice")
    assert "alice/fitted" in pushed
    assert b"method: fit" in hub.files("alice/fitted")["lwmm_recipe.yaml"]


@pytest.mark.parametrize("to", ["own", "transformers"])
def test_a_conversion_needs_no_torch(tiny: Models, tmp_path: Path, to: str) -> None:
    values = spell_smp(ancestor(B0, 1), B0)
    for source in (write_pth(tmp_path / "smp.pth", values), tiny.anchor):
        out = tmp_path / f"{source.stem}-out"
        assert watched(tmp_path, "convert", source, out, "--to", to).isdisjoint(HEAVY)


def test_a_merge_of_a_legacy_pickle_needs_no_torch(tiny: Models, tmp_path: Path) -> None:
    values = spell_smp(finetuned(ancestor(TINY, 1), 9), TINY)
    old = write_pth(tmp_path / "old.pth", values, legacy=True)
    assert watched(tmp_path, "merge", old, tiny.pth).isdisjoint(HEAVY)


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_no_merge_loads_ml_dtypes(dtype: str, tiny: Models, tmp_path: Path) -> None:
    assert "ml_dtypes" not in watched(tmp_path, "merge", tiny.anchor, tiny.donor, "--dtype", dtype)


def test_the_package_says_that_it_is_typed() -> None:
    from importlib.resources import files

    assert (files("lwmm_hub") / "py.typed").is_file()
