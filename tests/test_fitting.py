"""Fitted layer weights: laws, gradients, every class of network, and what bad input gets."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import zoo
from clients import assert_one_line, client, files_of
from hub import TestHub
from numpy.typing import NDArray
from PIL import Image as Pictures
from safetensors.torch import load_file, save_file
from stories import Command

import lwmm_hub as lw
from lwmm_hub.errors import EvaluationError, MergeError, UsageError
from lwmm_hub.evaluation.inference import Predictor
from lwmm_hub.evaluation.opening import open_data
from lwmm_hub.evaluation.unlabelled import UnlabelledImages, open_images
from lwmm_hub.fitting import drift_layer_weights, entropy_layer_weights, fit_layer_weights
from lwmm_hub.fitting.blending import Blend
from lwmm_hub.fitting.forwarding import LibraryNet, OwnNet, log_probabilities
from lwmm_hub.fitting.measuring import cumulative
from lwmm_hub.fitting.options import FitOptions
from lwmm_hub.fitting.parents import groups_of, live_states, load_transformers, open_parents
from lwmm_hub.fitting.teaching import ensemble, teach, vote_of
from lwmm_hub.fitting.training import Course, class_weights
from lwmm_hub.loading import load_model
from lwmm_hub.schedule import renormalised

Image = NDArray[np.uint8]
STREET = Path(__file__).parent.parent / "examples" / "street" / "anchor"  # it was trained


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("LWMM_HUB_CACHE", str(tmp_path / "cache"))


def pictures(count: int, height: int = 64, width: int = 96) -> list[Image]:
    """Smooth colours: what differs from place to place, so that networks say different things."""
    found = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        small = torch.from_numpy(rng.random((1, 3, 5, 7)))
        wide = torch.nn.functional.interpolate(small, (height, width), mode="bicubic")
        found.append((wide[0].permute(1, 2, 0).clamp(0, 1) * 255).numpy().astype(np.uint8))
    return found


def saved_pictures(folder: Path, count: int) -> Path:
    """A new folder with `pictures` as PNG files."""
    folder.mkdir()
    for i, image in enumerate(pictures(count)):
        Pictures.fromarray(image).save(folder / f"{i}.png")
    return folder


def changed(folder: Path, source: Path, seed: int, much: float = 0.3) -> Path:
    """A model that was trained on from another one: every float moved a little."""
    shutil.copytree(source, folder)
    tensors = load_file(source / "model.safetensors")
    noise = torch.Generator().manual_seed(seed)
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            size = float(tensor.std()) if tensor.numel() > 1 else 0.1
            moved = tensor + much * max(size, 0.1) * torch.randn(tensor.shape, generator=noise)
            tensors[name] = moved.abs() if name.endswith("running_var") else moved
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def relabelled(folder: Path, labels: Sequence[str]) -> Path:
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {str(i): name for i, name in enumerate(labels)}
    config["label2id"] = {name: i for i, name in enumerate(labels)}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    folder = tmp_path_factory.mktemp("fit")
    anchor = Path(shutil.copytree(STREET, folder / "a"))
    processor = json.loads((anchor / "preprocessor_config.json").read_text())
    processor["size"] = {"height": 64, "width": 64}  # a quarter of its own: tests have to be quick
    (anchor / "preprocessor_config.json").write_text(json.dumps(processor))
    return anchor, changed(folder / "d", anchor, 2, 0.5), changed(folder / "e", anchor, 3, 0.5)


QUICK: dict[str, Any] = {"threshold": 0.4, "states": ""}


def weights(plan: lw.MergePlan) -> NDArray[np.float64]:
    return np.array([layer.weights for layer in plan.layers])


# ----------------------------------------------------------------------------- the blended network


@pytest.mark.parametrize("make", [*zoo.DENSE, *zoo.MASKS], ids=lambda make: make.__name__)
def test_the_network_that_is_fitted_is_the_merge_that_is_written(
    make: Callable[[], Any], tmp_path: Path
) -> None:
    """With one donor that has everything and one whose head is gone, for every kind of network."""
    anchor = zoo.write(tmp_path / "a", make, 1)
    donors = [changed(tmp_path / f"d{i}", anchor, i) for i in range(2)]
    plan = lw.plan(anchor, *donors, scope="all", allow_unrelated=True)
    rng = np.random.default_rng(0)
    rows = {layer.name: tuple(rng.dirichlet([1, 1, 1])) for layer in plan.layers}
    plan = lw.plan(anchor, *donors, weights=rows, scope="all", allow_unrelated=True)
    parents = open_parents(plan)
    states, numbers = live_states(parents, load_transformers)
    groups, _ = groups_of(parents.plan)
    net = LibraryNet(Predictor.load(anchor))
    blend = Blend(net.network, states, numbers, groups)
    layers = parents.plan.layers
    blend.write(torch.tensor([renormalised(layers[g.layer].weights, g.present) for g in groups]))
    made = load_model(lw.merge(plan, output=tmp_path / "m").folder).state_dict()
    live = net.network.state_dict()
    assert set(live) == set(made)
    for name, tensor in live.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(
                tensor, made[name].to(tensor), atol=2e-6, rtol=1e-5, msg=name
            )
    # and what it computes has a gradient for layers all over it
    given = net.scores(pictures(1)[0], gradients=True)
    log_probabilities(given, (8, 12))[0].sum().backward()
    slope = blend.gradients()
    assert slope.isfinite().all()
    assert (slope[:, 1:] != 0).any(1).float().mean() > 0.6
    assert not slope[:, 0].any()


class Own(torch.nn.Module):
    """A user's own network, with everything that a blend has to care for."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 6, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(6)
        self.slope = torch.nn.PReLU(6)
        self.deep = torch.nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.norm2 = torch.nn.BatchNorm2d(6, affine=False)
        self.head = torch.nn.Conv2d(6, classes, 1)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        found = self.slope(self.norm(self.stem(pixels)))
        scores: torch.Tensor = self.head(torch.tanh(self.norm2(self.deep(found))))
        return scores


def own(seed: int, around: Own | None = None, classes: int = 3) -> Own:
    torch.manual_seed(seed)
    module = Own(classes).eval()
    state = dict((around or module).state_dict())
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                fresh = 0.5 * torch.randn(tensor.shape)
                tensor.copy_(state[name] + (0.4 if around else 1) * fresh)
                if name.endswith("running_var"):
                    tensor.abs_().add_(0.3)
    return module


def look(module: torch.nn.Module, image: Image) -> torch.Tensor:
    kind = next(module.parameters()).dtype
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].to(kind) / 128 - 1
    scores: torch.Tensor = module(pixels)[0, :, ::4, ::4]
    return scores * 3


@pytest.fixture
def modules(tmp_path: Path) -> tuple[list[Own], list[Path]]:
    anchor = own(0)
    every = [anchor, own(1, anchor), own(2, anchor)]
    files = []
    for i, module in enumerate(every):
        files.append(tmp_path / f"own{i}.pth")
        torch.save(module.state_dict(), files[-1])
    return every, files


def test_gradients_are_finite_differences_statistics_of_batch_norms_included(
    modules: tuple[list[Own], list[Path]],
) -> None:
    every, files = modules
    parents = open_parents(lw.plan(*files, scope="all", allow_unrelated=True))
    groups, _ = groups_of(parents.plan)
    from lwmm_hub.fitting.parents import load_own

    states, numbers = live_states(parents, load_own(list(every[0].state_dict())))
    net = OwnNet(own(0).double(), look, zoo.LABELS, "own")
    images = pictures(3)
    lessons = list(teach([net], images.__getitem__, [0, 1, 2], 0.4))
    blend = Blend(net.network, states, numbers, groups)
    options = FitOptions(batch_size=2, balance=0.5, mirror=True, held_back=0.3)
    course = Course(net, blend, parents.plan, lessons, images.__getitem__, options)
    point = torch.randn(len(parents.plan.layers), 3, dtype=torch.float64, requires_grad=True)

    def loss(at: torch.Tensor) -> tuple[float, torch.Tensor]:
        blend.write(course.rows(course.weights(at)))
        return course.slope(course.batch(0))

    rows = course.rows(course.weights(point))
    blend.write(rows)
    _, slope = course.slope(course.batch(0))
    rows.backward(slope)  # type: ignore[no-untyped-call]
    assert point.grad is not None
    step = 1e-5
    for place in np.ndindex(*point.shape):
        moved = torch.zeros_like(point)
        moved[place] = step
        with torch.no_grad():
            up, down = point + moved, point - moved
        expected = (loss(up)[0] - loss(down)[0]) / (2 * step)
        assert float(point.grad[place]) == pytest.approx(expected, abs=2e-6)
    names = [layer.name for layer in parents.plan.layers]
    assert point.grad[names.index("norm2")].abs().max() > 1e-5  # statistics alone


def test_classes_count_alike_but_not_what_is_in_a_few_pixels_only() -> None:
    pixels = np.array([600_000, 390_000, 9_000, 990, 10, 0])
    total = class_weights(pixels, 1.0) * pixels
    assert total.sum() == pytest.approx(pixels.sum())
    assert total[1:3] == pytest.approx(total[0])
    assert total[3] == pytest.approx(0.99 * total[0])  # under a thousandth of the pixels
    assert total[4] == pytest.approx(0.01 * total[0])
    assert total[5] == 0
    assert class_weights(pixels, 0.0)[:5] == pytest.approx(1.0)


# -------------------------------------------------------------------------------------------- laws


def test_zero_steps_and_equal_parents_give_the_ramp(
    trio: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    anchor, donor, _ = trio
    plan = lw.plan(anchor, donor)
    none = fit_layer_weights(plan, pictures(2), steps=0, **QUICK)
    assert (weights(none) == weights(plan)).all()
    assert none.weights_from["result"] == "start"
    shutil.copytree(anchor, tmp_path / "same")
    plan = lw.plan(anchor, tmp_path / "same")
    same = fit_layer_weights(plan, pictures(4), steps=4, **QUICK)
    assert (weights(same) == weights(plan)).all()
    [warning] = [w for w in same.warnings if "no layer weights that agree better" in w]
    result = lw.merge(same, output=tmp_path / "m")  # what the fit had to say is not lost on the way
    assert result.warnings.count(warning) == 1
    assert "no layer weights that agree better" in (tmp_path / "m" / "README.md").read_text("utf-8")


def test_a_donor_of_noise_is_driven_out(trio: tuple[Path, Path, Path], tmp_path: Path) -> None:
    anchor = trio[0]
    tensors = load_file(anchor / "model.safetensors")
    torch.manual_seed(5)
    noise = {k: torch.randn_like(v) * v.std() if v.ndim > 1 else v for k, v in tensors.items()}
    shutil.copytree(anchor, tmp_path / "n")
    save_file(noise, tmp_path / "n" / "model.safetensors", metadata={"format": "pt"})
    plan = lw.plan(anchor, tmp_path / "n", allow_unrelated=True, scope="all", schedule="isotropic")
    fitted = fit_layer_weights(
        plan, pictures(6), steps=40, lr=0.3, teacher="anchor", batch_size=2, **QUICK
    )
    assert fitted.weights_from["agreement_after"] > fitted.weights_from["agreement_before"]
    moved = weights(fitted)[:, 1][weights(fitted)[:, 1] != 0.5]  # norms are the same in both
    assert len(moved) > 0.5 * len(weights(fitted))
    assert np.median(moved) < 0.1


def test_the_order_of_donors_and_chance_do_not_matter(trio: tuple[Path, Path, Path]) -> None:
    anchor, one, other = trio
    options = {**QUICK, "steps": 2, "lr": 0.2, "checks": 2, "batch_size": 2}
    first = fit_layer_weights(lw.plan(anchor, one, other), pictures(3), **options)
    again = fit_layer_weights(lw.plan(anchor, one, other), pictures(3), **options)
    assert first.weights_from["result"] == "fitted"
    assert (weights(first) == weights(again)).all()
    assert first.weights_from == again.weights_from
    swapped = fit_layer_weights(lw.plan(anchor, other, one), pictures(3), **options)
    np.testing.assert_allclose(weights(swapped)[:, [0, 2, 1]], weights(first), atol=1e-4)
    other_seed = fit_layer_weights(lw.plan(anchor, one, other), pictures(3), seed=1, **options)
    assert (weights(other_seed) != weights(first)).any()


def test_a_fit_agrees_better_and_is_a_plain_merge_afterwards(
    trio: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    plan = lw.plan(*trio[:2])
    seen: list[tuple[str, int, int]] = []
    fitted = fit_layer_weights(
        plan,
        pictures(6),
        steps=6,
        lr=0.2,
        patience=9,
        progress=lambda what, done, total, *_: seen.append((what, done, total)),
        **QUICK,
    )
    origin = fitted.weights_from
    assert origin["agreement_after"] > origin["agreement_before"]
    assert (origin["fitted_on"], origin["held_back"], origin["labels_used"]) == (5, 1, False)
    assert ("teaching", 6, 6) in seen
    assert ("fitting", 6, 6) in seen
    np.testing.assert_allclose(weights(fitted).sum(1), 1, atol=1e-12)
    assert set(fitted.kept) == set(plan.kept)
    result = lw.merge(fitted, output=tmp_path / "m")
    assert lw.MergePlan.from_dict(json.loads(json.dumps(fitted.to_dict()))) == fitted
    again = lw.merge_recipe(tmp_path / "m" / "lwmm_recipe.yaml", output=tmp_path / "again")
    assert again.files == result.files
    # the agreement that was told is that of the merge as it was written
    net = LibraryNet(Predictor.load(result.folder))
    course_like = [LibraryNet(Predictor.load(folder)) for folder in trio[:2]]
    lessons = list(teach(course_like, pictures(6).__getitem__, range(6), 0.4))
    labels = np.concatenate([lesson.confident().ravel() for lesson in lessons])
    counts = np.bincount(labels[labels >= 0])
    held = lessons[int(np.random.default_rng(0).permutation(6)[0])]
    found = log_probabilities(net.scores(pictures(6)[held.image]), held.grid).numpy()
    told = held.confident()
    sure = told >= 0
    likely = np.take_along_axis(found, np.maximum(told, 0)[None], 0)[0][sure]
    by_class = 1 / counts[told[sure]]  # classes count alike
    agreement = np.exp((likely * by_class).sum() / by_class.sum())
    assert agreement == pytest.approx(origin["agreement_after"], abs=1e-4)


def test_an_interrupted_fit_gives_the_best_so_far_and_goes_on_to_the_same_end(
    trio: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    folder = saved_pictures(tmp_path / "images", 5)
    plan = lw.plan(*trio[:2])
    options: dict[str, Any] = {"steps": 6, "lr": 0.2, "threshold": 0.4, "checks": 6}
    whole = fit_layer_weights(plan, folder, states="", **options)

    def stop(what: str, done: int, *_: Any) -> None:
        if (what, done) == ("fitting", 4):
            raise KeyboardInterrupt

    states = tmp_path / "states"
    half = fit_layer_weights(plan, folder, states=states, progress=stop, **options)
    assert any("interrupted after 4 of 6 steps" in w for w in half.warnings)
    seen: list[int] = []
    rest = fit_layer_weights(
        plan,
        folder,
        states=states,
        progress=lambda what, done, *_: seen.append(done) if what == "fitting" else None,
        **options,
    )
    assert seen == [5, 6]
    assert (weights(rest) == weights(whole)).all()
    assert rest.weights_from == whole.weights_from
    again: list[str] = []
    fit_layer_weights(
        plan, folder, states=states, progress=lambda what, *_: again.append(what), **options
    )
    assert "fitting" not in again


def test_a_fit_on_another_column_begins_anew(trio: tuple[Path, Path, Path], tmp_path: Path) -> None:
    day = UnlabelledImages("city", "a" * 40, "train", 3, pictures(3).__getitem__, ("day",))
    night = replace(day, columns=("night",), read=lambda i: pictures(3)[i] // 8)
    seen: dict[str, list[int]] = {}
    for name, images in (("day", day), ("night", night), ("day again", day)):
        steps = seen[name] = []
        fit_layer_weights(
            lw.plan(*trio[:2]),
            images,
            steps=1,
            threshold=0.3,
            states=tmp_path / "states",
            progress=lambda what, done, *_, to=steps: to.append(done) if what == "fitting" else 0,
        )
    assert seen == {"day": [0, 1], "night": [0, 1], "day again": []}


def test_a_fit_of_another_merge_of_the_same_layers_begins_anew(
    trio: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    """Statistics that stay the anchor's, and a head that one donor lacks, leave no layer out."""
    folder = saved_pictures(tmp_path / "images", 3)
    seen = []
    for options in ({}, {"batch_norm": "anchor"}, {}):
        done: list[int] = []
        fit_layer_weights(
            lw.plan(*trio, **options),
            folder,
            steps=1,
            threshold=0.3,
            states=tmp_path / "states",
            progress=lambda what, n, *_, to=done: to.append(n) if what == "fitting" else 0,
        )
        seen.append(done)
    assert seen == [[0, 1], [0, 1], []]


def test_weights_of_a_stage_move_together(trio: tuple[Path, Path, Path]) -> None:
    plan = lw.plan(*trio[:2], schedule="isotropic")
    fitted = fit_layer_weights(plan, pictures(4), steps=4, lr=0.3, per="stage", **QUICK)
    by_stage: dict[str, set[tuple[float, ...]]] = {}
    for layer in fitted.layers:
        by_stage.setdefault(".".join(layer.name.split(".")[:2]), set()).add(layer.weights)
    assert {len(v) for k, v in by_stage.items() if k.startswith("stages")} == {1}


# ----------------------------------------------------------------------------------------- teacher


def test_the_teacher_is_the_mean_where_labels_are_the_same() -> None:
    torch.manual_seed(0)
    mine, *theirs = (torch.randn(3, 4, 5).softmax(0) for _ in range(3))
    vote = vote_of(zoo.LABELS, zoo.LABELS, "donor")
    found = ensemble(mine, [(each, vote) for each in theirs])
    torch.testing.assert_close(found, (mine + theirs[0] + theirs[1]) / 3)


def test_a_donor_votes_on_shared_labels_alone() -> None:
    torch.manual_seed(0)
    mine, theirs = torch.randn(3, 4, 5).softmax(0), torch.randn(4, 4, 5).softmax(0)
    vote = vote_of(("road", "car", "sky"), ("Car", "boat", "road", "CAR "), "donor")
    found = ensemble(mine, [(theirs, vote)])
    torch.testing.assert_close(found.sum(0), torch.ones(4, 5))
    torch.testing.assert_close(found[2], mine[2])  # nobody else knows the sky
    torch.testing.assert_close(found[:2].sum(0), mine[:2].sum(0))
    sure = torch.zeros(4, 4, 5)
    sure[1] = 1.0  # a boat: no word about anything that the anchor knows
    torch.testing.assert_close(ensemble(mine, [(sure, vote)]), mine)
    with pytest.raises(EvaluationError, match="no name is shared"):
        vote_of(zoo.LABELS, ("cat", "dog"), "donor")


def test_models_with_other_labels_teach_what_they_share(
    trio: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    anchor, donor, _ = trio
    names = ["car", "tree", "road", "sky", "sidewalk", "building", "sea", "boat", "pole"]
    other = relabelled(Path(shutil.copytree(donor, tmp_path / "o")), names)
    tensors = load_file(other / "model.safetensors")
    for name in ("weight", "bias"):
        key = f"decode_head.classifier.{name}"
        tensors[key] = torch.cat([tensors[key].flip(0), tensors[key][:1] * 0.5])
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    plan = lw.plan(anchor, other)
    assert any("classifier" in key for key in plan.kept)
    fitted = fit_layer_weights(plan, pictures(4), steps=4, lr=0.2, **QUICK)
    result = lw.merge(fitted, output=tmp_path / "m")
    made, mine = (load_file(f / "model.safetensors") for f in (result.folder, anchor))
    for key in plan.kept:
        assert torch.equal(made[key], mine[key]), key


# ------------------------------------------------------------------------------- the user's modules


def test_a_module_of_ones_own_is_fitted_through_predict(
    modules: tuple[list[Own], list[Path]], tmp_path: Path
) -> None:
    every, files = modules
    before = {k: v.clone() for k, v in every[0].state_dict().items()}
    plan = lw.plan(*files, scope="all", allow_unrelated=True)
    fitted = fit_layer_weights(
        plan, pictures(5), look, modules=own(7), labels=zoo.LABELS, steps=10, lr=0.3, **QUICK
    )
    assert fitted.weights_from["agreement_after"] > fitted.weights_from["agreement_before"]
    assert all(torch.equal(v, before[k]) for k, v in every[0].state_dict().items())
    result = lw.merge(fitted, output=tmp_path / "m")
    own(9).load_state_dict(load_file(result.folder / "model.safetensors"))
    with pytest.raises(UsageError, match="pass it as modules="):
        fit_layer_weights(plan, pictures(2), look, labels=zoo.LABELS, **QUICK)
    with pytest.raises(UsageError, match="names of the classes"):
        fit_layer_weights(plan, pictures(2), look, modules=own(7), **QUICK)
    with pytest.raises(UsageError, match="Pass a list with the module of each model"):
        fit_layer_weights(
            plan, pictures(2), look, modules=own(7, classes=4), labels=[*"abcd"], **QUICK
        )
    with pytest.raises(EvaluationError, match="no gradients"):
        fit_layer_weights(
            plan,
            pictures(4),
            lambda m, i: look(m, i).detach(),
            modules=own(7),
            labels=zoo.LABELS,
            **QUICK,
        )


# --------------------------------------------------------------------------------------- the whole


def test_a_fitted_merge_goes_through_the_hub_and_is_verified(
    trio: tuple[Path, Path, Path], tmp_path: Path, hub: TestHub
) -> None:
    """From the command line, with images that no label lies beside; verify sees none of them."""
    cwd = tmp_path / "cwd"
    (cwd / "dusk").mkdir(parents=True)
    for i, image in enumerate(pictures(4)):
        Pictures.fromarray(image).save(cwd / "dusk" / f"{i}.png")
    for name, folder in zip(("org/day", "org/night"), trio[:2], strict=True):
        hub.create_repo(name, files_of(folder))
    with client(hub, tmp_path / "home", cwd) as run:
        found = ("--weights", "fit", "--images", "dusk", "--fit-steps", "3", "--fit-lr", "0.3")
        done = run("merge", "org/day", "org/night", *found, "--push", "alice/fit", token="alice")
        assert done.code == 0, done.err
        assert "fitted on 3 images: agreement with the teacher on 1 other 0." in done.err
        (cwd / "dusk" / "0.png").write_bytes(b"gone")
        verified = run("verify", "alice/fit", token="alice")
        assert verified.code == 0, verified.err
        for wrong, message in (
            (("--images", "dusk"), "--images goes with --weights fit or --weights entropy"),
            (("--weights", "fit"), "name them with --images"),
            (("--weights", "drift", "--fit-steps", "3"), "--fit-steps goes with --weights fit"),
        ):
            done = run("merge", "org/day", "org/night", *wrong)
            assert_one_line(done, message, code=done.code or -1)
    files = hub.files("alice/fit")
    card, recipe = (files[name].decode() for name in ("README.md", "lwmm_recipe.yaml"))
    assert "no training took place" not in card
    assert "only the layer weights were fitted, without labels" in card
    assert "4 images of dusk" in card
    assert "labels_used: false" in recipe
    assert str(tmp_path) not in card + recipe
    assert "stroke-dasharray" in files["layer_weights.svg"].decode()
    made = load_model_of(files, tmp_path / "pulled")
    assert made.config.architectures == ["SegformerForSemanticSegmentation"]


def load_model_of(files: dict[str, bytes], folder: Path) -> Any:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return load_model(folder)


def test_a_fit_is_not_scored_on_its_own_images(
    trio: tuple[Path, Path, Path], tmp_path: Path, lwmm: Command
) -> None:
    for kind in ("images", "labels"):
        for split in ("train", "val"):
            (tmp_path / "city" / kind / split).mkdir(parents=True)
            for i, image in enumerate(pictures(2)):
                file = tmp_path / "city" / kind / split / f"{i}.png"
                Pictures.fromarray(image if kind == "images" else image[..., 0] // 32).save(file)
    labels = tmp_path / "city" / "id2label.json"
    names = json.loads((trio[0] / "config.json").read_text())["id2label"]
    labels.write_text(json.dumps(names))
    common = (*trio[:2], "--weights", "fit", "--fit-steps", "1", "--fit-threshold", "0.2",
              "--images", tmp_path / "city", "--evaluate", tmp_path / "city")  # fmt: skip
    done = lwmm("merge", *common, "--split", "val")
    assert done.code == 2
    assert "pass --transductive" in done.err
    done = lwmm("merge", *common, "-o", "a")  # fitted on train, scored on val
    assert done.code == 0, done.err
    shutil.copytree(trio[0], tmp_path / "same")
    equal = (trio[0], tmp_path / "same", *common[2:6], "--images", tmp_path / "city")
    done = lwmm("merge", *equal, "-o", "c", "--json")
    assert done.code == 0, done.err
    assert any("agree better with the teacher" in text for text in done.data["warnings"])
    assert "Nothing agreed better" in Path("c/README.md").read_text("utf-8")
    done = lwmm("merge", *common, "--split", "val", "--transductive", "-o", "b", "--json")
    assert done.code == 0, done.err
    assert done.data["scores"]["dataset"]["split"] == "val"


def labelled(split: str | None = None) -> Any:
    """A table of pictures and label maps."""
    import datasets

    maps = [Pictures.fromarray(image[..., 0] // 32) for image in pictures(2)]
    rows = {"image": [Pictures.fromarray(image) for image in pictures(2)], "label": maps}
    chosen = datasets.Split(split) if split else None
    return datasets.Dataset.from_dict(rows, split=chosen)


def test_a_split_is_what_the_data_says_and_not_what_is_typed(
    trio: tuple[Path, Path, Path], tmp_path: Path, lwmm: Command
) -> None:
    """Else the guard above would believe `--split train`, and so would recipe and card."""
    import datasets

    names = tmp_path / "names.json"
    names.write_text((trio[0] / "config.json").read_text())
    names.write_text(json.dumps(json.loads(names.read_text())["id2label"]))
    labelled().save_to_disk(str(tmp_path / "saved"))
    labelled("train").save_to_disk(str(tmp_path / "told"))
    common = (*trio[:2], "--weights", "fit", "--fit-steps", "1", "--fit-threshold", "0.2",
              "--evaluate-labels", names)  # fmt: skip
    for folder, split, code, said in (
        ("saved", ("--split", "train"), 1, "saved has no splits"),
        ("saved", ("--split", "nonsense"), 1, "saved has no splits"),
        ("saved", (), 2, "pass --transductive"),
        ("told", ("--split", "val"), 1, "told is the split 'train' alone"),
        ("told", ("--split", "train"), 2, "pass --transductive"),
        ("told", (), 2, "pass --transductive"),
    ):
        data = ("--images", tmp_path / folder, "--evaluate", tmp_path / folder)
        done = lwmm("merge", *common, *data, *split, "-o", "out")
        assert (done.code, said in done.err) == (code, True), (folder, split, done.err)
    assert open_images(tmp_path / "told").split == "train"
    assert open_images(labelled("train")).split == "train"
    assert open_data(labelled("train"), label_space=str(names)).split == "train"
    whole = datasets.DatasetDict({"train": labelled(), "val": labelled()})
    assert open_images(whole).split == "train"
    for source in (labelled(), labelled("val"), whole, open_images(labelled("val"))):
        with pytest.raises(EvaluationError, match=r"split"):
            open_images(source, split="test")


def test_images_that_are_scored_are_known_by_their_files(
    trio: tuple[Path, Path, Path], tmp_path: Path, lwmm: Command
) -> None:
    """Whatever the folder is called that they are named by."""
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (tmp_path / "own" / kind / split).mkdir(parents=True)
        for i, image in enumerate(pictures(2)):
            Pictures.fromarray(image).save(tmp_path / f"own/images/{split}/{i}.png")
            Pictures.fromarray(image[..., 0] // 64).save(tmp_path / f"own/labels/{split}/{i}.png")
    names = tmp_path / "names.json"
    labels = json.loads((trio[0] / "config.json").read_text())["id2label"]
    names.write_text(json.dumps([labels[str(i)] for i in range(len(labels))]))
    common = (*trio[:2], "--weights", "fit", "--fit-steps", "1", "--fit-threshold", "0.2",
              "--evaluate", tmp_path / "own", "--evaluate-labels", names,
              "--evaluate-split", "val", "-o", "out")  # fmt: skip
    for images in ("own/images/val", "own/images"):
        split = ("--split", "val") if images == "own/images" else ()
        done = lwmm("merge", *common, "--images", tmp_path / images, *split)
        assert (done.code, "pass --transductive" in done.err) == (2, True), done.err
    done = lwmm("merge", *common, "--images", tmp_path / "own/images/train")
    assert done.code == 0, done.err


def test_pictures_of_pillow_are_images(trio: tuple[Path, Path, Path]) -> None:
    arrays = pictures(3)
    found = open_images([Pictures.fromarray(image) for image in arrays])
    assert all(np.array_equal(found.read(i), arrays[i]) for i in range(3))


def test_parquet_files_give_images_as_they_give_truth(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        labelled().to_parquet(str(tmp_path / "city" / f"{split}-00000-of-00001.parquet"))
    found = open_images(tmp_path / "city")
    assert (found.count, found.split, found.reference) == (2, "train", "city")
    assert found.read(1).tolist() == pictures(2)[1].tolist()
    assert open_images(tmp_path / "city", split="validation").split == "validation"
    with pytest.raises(EvaluationError, match="city has no split 'test'"):
        open_images(tmp_path / "city", split="test")


def test_label_maps_of_a_data_set_without_splits_are_no_images(tmp_path: Path) -> None:
    for name, kinds in (("synthia", ("RGB", "GT/LABELS")), ("pairs", ("images", "labels"))):
        for kind in kinds:
            (tmp_path / name / kind).mkdir(parents=True)
            for i, image in enumerate(pictures(2)):
                Pictures.fromarray(image).save(tmp_path / name / kind / f"{i}.png")
        found = open_images(tmp_path / name)
        assert (found.count, found.split) == (2, None)
        with pytest.raises(EvaluationError, match=f"as {name} does, which has no splits"):
            open_images(tmp_path / name, split="train")
    for kind in ("images/0.jpg", "v1.2/labels/0.png", "v2.0/labels/0.png"):
        path = tmp_path / "vistas" / "training" / kind
        path.parent.mkdir(parents=True)
        Pictures.fromarray(pictures(1)[0]).save(path)
    with pytest.raises(EvaluationError, match="several data sets lie in vistas"):
        open_images(tmp_path / "vistas")
    assert open_images(f"mapillary-v2.0:{tmp_path / 'vistas'}").count == 1


# -------------------------------------------------------------------------------- measured weights


def test_a_drift_ramp_follows_the_drift(trio: tuple[Path, Path, Path], tmp_path: Path) -> None:
    anchor = trio[0]
    shutil.copytree(anchor, tmp_path / "late")
    tensors = load_file(anchor / "model.safetensors")
    key = "decode_head.linear_fuse.weight"
    tensors[key] = tensors[key] * 1.5
    save_file(tensors, tmp_path / "late" / "model.safetensors", metadata={"format": "pt"})
    made = drift_layer_weights(lw.plan(anchor, tmp_path / "late"))
    donors = {layer.name: layer.weights[1] for layer in made.layers}
    names = list(donors)
    place = next(i for i, t in enumerate(names) if t == "head.fuse" or "fuse" in t)
    assert all(donors[n] == 0.5 for n in names[:place])
    assert all(donors[n] == pytest.approx(0.0) for n in names[place:])
    same = drift_layer_weights(lw.plan(anchor, shutil.copytree(anchor, tmp_path / "same")))
    np.testing.assert_allclose(weights(same), weights(lw.plan(anchor, tmp_path / "same")))
    assert made.weights_from["method"] == "drift"
    assert str(made).startswith("2 models, drift-measured layer weights")
    three = drift_layer_weights(lw.plan(*trio, schedule="linear"))
    assert weights(three)[0] == pytest.approx([1 / 3] * 3)
    assert weights(three)[-1] == pytest.approx([1, 0, 0])


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"schedule": "cosine"}, "schedule"),
        ({"schedule": "isotropic"}, "schedule"),
        ({"start": 0.5}, "start"),
        ({"end": 0.6}, "end"),
        ({"gamma": 3.0}, "gamma"),
    ],
)
def test_what_a_drift_ramp_does_not_look_at_is_refused(
    options: dict[str, Any], name: str, trio: tuple[Path, Path, Path]
) -> None:
    with pytest.raises(UsageError, match=f"^{name} changes nothing where the drift"):
        drift_layer_weights(lw.plan(*trio, **options))


def test_a_drift_ramp_ends_and_begins_where_it_is_told(trio: tuple[Path, Path, Path]) -> None:
    made = drift_layer_weights(lw.plan(*trio[:2], anchor_weight=0.75, endpoint=0.5))
    assert weights(made)[0] == pytest.approx([0.75, 0.25])
    assert weights(made)[-1] == pytest.approx([0.875, 0.125])


def test_a_drift_ramp_ends_with_what_a_donor_shares(
    trio: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    """The head of one donor is another training's: how far it is says nothing of the backbone."""
    shutil.copytree(trio[2], tmp_path / "e")
    tensors = load_file(trio[2] / "model.safetensors")
    torch.manual_seed(0)
    for key, value in tensors.items():
        if key.startswith("decode_head") and value.ndim > 1:
            tensors[key] = 20 * value.std() * torch.randn_like(value)
    save_file(tensors, tmp_path / "e" / "model.safetensors", metadata={"format": "pt"})
    plan = lw.plan(trio[0], trio[1], tmp_path / "e", check_weights=True)
    assert [model.kept_parts for model in plan.models] == [(), (), ("head",)]
    made = drift_layer_weights(plan)
    last = max(layer.index for layer in made.layers if layer.part == "backbone")
    assert made.layers[last].weights[1] > 1e-4
    assert made.layers[last].weights[2] == 0


def test_a_drift_that_nothing_tells_is_refused(
    trio: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    shutil.copytree(trio[1], tmp_path / "bad")
    tensors = load_file(trio[1] / "model.safetensors")
    tensors["segformer.encoder.block.2.0.mlp.dense1.weight"][0, 0] = float("inf")
    save_file(tensors, tmp_path / "bad" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        MergeError, match=r"^bad has NaN or inf.* in stages\.2\.blocks\.0\.mlp\.fc1"
    ):
        drift_layer_weights(lw.plan(trio[0], tmp_path / "bad", allow_nonfinite=True))


@pytest.mark.parametrize("drifts", [[0.1] * 12, [0.3, 0.1, 0.2] * 9, [1e-300, 1e300, 0.1]])
def test_a_drift_ramp_ends_at_1_to_the_last_bit(drifts: list[float]) -> None:
    found = cumulative(drifts)
    assert (found[0], found[-1]) == (0.0, 1.0)
    expected = np.cumsum([0.0, *drifts[1:]]) / np.sum(drifts[1:])
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_entropy_gives_more_to_the_surer_donor(
    trio: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    anchor = trio[0]
    donors = []
    for name, factor in (("sure", 3.0), ("unsure", 0.05)):
        donors.append(Path(shutil.copytree(anchor, tmp_path / name)))
        tensors = load_file(anchor / "model.safetensors")
        for leaf in ("weight", "bias"):
            tensors[f"decode_head.classifier.{leaf}"] *= factor
        save_file(tensors, donors[-1] / "model.safetensors", metadata={"format": "pt"})
    made = entropy_layer_weights(lw.plan(anchor, *donors), pictures(2))
    first = made.layers[0].weights
    assert first[1] > first[0] > first[2]
    assert sum(first) == pytest.approx(1)
    assert made.layers[-1].weights[0] == pytest.approx(1)
    even = entropy_layer_weights(
        lw.plan(anchor, shutil.copytree(anchor, tmp_path / "s")), pictures(2)
    )
    np.testing.assert_allclose(weights(even)[0], [0.5, 0.5], atol=1e-9)
    assert entropy_layer_weights(lw.plan(anchor, *donors), pictures(2)) == made


# --------------------------------------------------------------------------------------- bad input


def test_labels_are_never_opened(trio: tuple[Path, Path, Path], tmp_path: Path) -> None:
    for kind in ("images", "labels"):
        (tmp_path / "city" / kind / "train").mkdir(parents=True)
    for i, image in enumerate(pictures(3)):
        Pictures.fromarray(image).save(tmp_path / "city" / "images" / "train" / f"{i}.png")
        (tmp_path / "city" / "labels" / "train" / f"{i}.png").write_bytes(b"no picture at all")
    found = open_images(tmp_path / "city")
    assert (found.count, found.split, found.reference) == (3, "train", "city")
    fitted = fit_layer_weights(
        lw.plan(*trio[:2]), tmp_path / "city", steps=1, threshold=0.4, states=""
    )
    assert fitted.weights_from["split"] == "train"
    assert fitted.weights_from["revision"] == found.revision
    assert str(tmp_path) not in json.dumps(fitted.weights_from)


def test_images_come_from_everywhere(tmp_path: Path) -> None:
    import datasets

    images = pictures(4)
    rows = datasets.Dataset.from_dict({"image": [Pictures.fromarray(i) for i in images]})
    found = open_images(rows)
    assert (found.count, found.read(2).tolist()) == (4, images[2].tolist())
    (tmp_path / "data" / "val").mkdir(parents=True)
    Pictures.fromarray(images[0]).save(tmp_path / "data" / "val" / "x.png")
    assert open_images(tmp_path / "data").count == 1
    assert open_images(tmp_path / "data", split="val").split == "val"
    assert open_images(images).chosen(3) == [0, 2, 3]
    assert open_images(images).reader((32, 40), 0)(1).shape == (32, 40, 3)
    with pytest.raises(EvaluationError, match="no pictures of a split 'train'"):
        open_images(tmp_path / "data", split="train")


def test_bad_input_gets_one_line(
    trio: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    anchor, donor, _ = trio
    plan = lw.plan(anchor, donor)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"nothing")
    foreign = relabelled(
        Path(shutil.copytree(donor, tmp_path / "foreign")), [f"cat {i}" for i in range(8)]
    )
    table: tuple[tuple[Any, dict[str, Any], str], ...] = (
        (tmp_path / "empty", {}, "holds no image"),
        (tmp_path / "none", {}, "there is no folder"),
        (tmp_path / "broken", {}, r"^broken, image 0: broken/a\.png cannot be decoded"),
        ([], {}, "holds no image"),
        ([np.zeros((64, 64), np.uint8)], {}, r"give uint8 RGB arrays"),
        (pictures(2, 8, 8), {}, "8 x 8 pixels: at least 32 x 32"),
        (pictures(2), {"threshold": 0.999999}, "the parents do not agree. Lower the threshold"),
        (pictures(2), {"steps": -1}, "steps is -1"),
        (pictures(2), {"lr": 0.0}, "lr is 0"),
        (pictures(2), {"teacher": "oracle"}, "choose ensemble, anchor"),
        (pictures(2), {"stepz": 1}, "unknown option 'stepz'"),
    )
    for images, options, message in table:
        with pytest.raises((EvaluationError, UsageError), match=message) as caught:
            fit_layer_weights(plan, images, **{**QUICK, **options})
        assert "\n" not in str(caught.value)
        assert str(tmp_path) not in str(caught.value) or "no folder" in message
    with pytest.raises(EvaluationError, match=r"8 labels \(cat 0.*no name is shared"):
        fit_layer_weights(lw.plan(anchor, foreign), pictures(2), **QUICK)
    with pytest.raises(UsageError, match="leave --batch-norm moment out"):
        fit_layer_weights(lw.plan(anchor, donor, batch_norm="moment"), pictures(2), **QUICK)

    def no_memory(*_: Any, **__: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(Course, "slope", no_memory)
    with pytest.raises(EvaluationError, match="--window"):
        fit_layer_weights(plan, pictures(3), steps=1, **QUICK)


def test_bad_input_is_one_line_on_the_command_line_and_nothing_is_merged_instead(
    trio: tuple[Path, Path, Path], tmp_path: Path, lwmm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    anchor, donor, _ = trio
    for name, sizes in (("good", [(64, 96)] * 3), ("broken", [(64, 96)] * 3), ("small", [(8, 8)])):
        Path(name).mkdir()
        for i, size in enumerate(sizes):
            Pictures.fromarray(pictures(1, *size)[0]).save(f"{name}/{i}.png")
    Path("broken/1.png").write_bytes(Path("broken/1.png").read_bytes()[:200])
    Path("empty").mkdir()
    relabelled(Path(shutil.copytree(donor, "foreign")), [f"cat {i}" for i in range(8)])
    shutil.copytree(donor, "huge")  # its scores overflow
    tensors = load_file("huge/model.safetensors")
    tensors["decode_head.classifier.weight"] *= 1e38
    save_file(tensors, "huge/model.safetensors", metadata={"format": "pt"})
    sorting = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic", num_labels=3
    )
    for name in ("sorter", "other"):
        transformers.ResNetForImageClassification(sorting).save_pretrained(name)
        zoo.segformer()[1].save_pretrained(name)
    shutil.copy("sorter/model.safetensors", "other/model.safetensors")

    def refused(*arguments: str | Path, says: Sequence[str], code: int = 1) -> None:
        done = lwmm("merge", *arguments, "-o", "out")
        lines = [line for line in done.err.splitlines() if line.startswith("lwmm-hub: ")]
        assert (done.code, done.out, len(lines)) == (code, "", 1), done
        for words in says:
            assert words in lines[0], lines[0]
        assert not Path("out").exists()

    fit = ("--weights", "fit", "--fit-steps", "2", "--images")
    refused(anchor, donor, *fit, "empty", says=["empty holds no image", "Name another"])
    refused(anchor, donor, *fit, "./none", says=["no folder ./none", "Check its path"])
    refused(anchor, donor, *fit, "broken", says=["image 1: broken/1.png", "Get a sound copy"])
    refused(anchor, donor, *fit, "small", says=["image 0 of small has 8 x 8", "Leave it out"])
    refused(anchor, "foreign", *fit, "good", says=["foreign has 8 labels", "no name is shared"])
    refused("sorter", "other", *fit, "good", says=["sorter gives no scores of pixels"])
    refused(anchor, "huge", *fit, "good", says=["huge gives scores that are not finite", "Leave"])
    refused(anchor, donor, *fit, "good", "--window", "8", says=["at least 32 x 32"], code=2)

    def no_memory(*_: Any, **__: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(Course, "slope", no_memory)
    refused(anchor, donor, *fit, "good", says=["memory ran out", "--window 512"])


def test_images_of_wildly_different_sizes_are_fitted_on_together(
    trio: tuple[Path, Path, Path],
) -> None:
    images = [*pictures(3), pictures(1, 40, 1500)[0], pictures(1, 900, 33)[0]]
    options: dict[str, Any] = {**QUICK, "steps": 3, "lr": 0.2, "checks": 3, "batch_size": 5}
    fitted = fit_layer_weights(lw.plan(*trio[:2]), images, **options)
    assert fitted.weights_from["result"] == "fitted"
    assert (fitted.weights_from["fitted_on"], fitted.weights_from["held_back"]) == (4, 1)


def test_a_loss_that_is_not_finite_ends_the_fit(
    modules: tuple[list[Own], list[Path]], tmp_path: Path
) -> None:
    _, files = modules
    calls = 0

    def breaks(module: torch.nn.Module, image: Image) -> torch.Tensor:
        nonlocal calls
        found = look(module, image)
        calls += torch.is_grad_enabled() and found.requires_grad
        return found * (float("nan") if calls > limit and found.requires_grad else 1.0)

    plan = lw.plan(*files, scope="all", allow_unrelated=True)
    options: dict[str, Any] = {**QUICK, "modules": own(7), "labels": zoo.LABELS, "lr": 0.3}
    limit = 0
    with pytest.raises(EvaluationError, match="loss of the fit is not finite after 0 steps"):
        fit_layer_weights(plan, pictures(5), breaks, steps=8, **options)
    calls, limit = 0, 24  # six steps of four images
    fitted = fit_layer_weights(plan, pictures(5), breaks, steps=8, checks=8, patience=9, **options)
    assert any("after 6 steps" in warning for warning in fitted.warnings)
    assert fitted.weights_from["result"] == "fitted"


def test_a_model_without_scores_of_pixels_is_named(tmp_path: Path) -> None:
    import transformers as t

    torch.manual_seed(0)
    config = t.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], num_labels=3)
    model = t.ResNetForImageClassification(config)
    for name in ("a", "b"):
        model.save_pretrained(tmp_path / name)
        zoo.segformer()[1].save_pretrained(tmp_path / name)
    with pytest.raises(EvaluationError, match="gives no scores of pixels"):
        fit_layer_weights(lw.plan(tmp_path / "a", tmp_path / "b"), pictures(2), **QUICK)


# ---------------------------------------------------------------------------------------- the study


def test_the_results_of_the_study_are_those_of_its_log(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = STREET.parent.parent / "fit"
    monkeypatch.syspath_prepend(str(folder))
    import report

    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert (folder / "RESULTS.md").read_text("utf-8") == report.results(lines)
    assert not any("rows" in line for line in lines)
