"""The weights that are named are the ones that are looked at, whatever file lies beside them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import zoo
from clients import client, files_of
from hub import TestHub
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file

from lwmm_hub.errors import OutputError
from lwmm_hub.evaluation.inference import InferenceOptions, Predictor
from lwmm_hub.evaluation.label_spaces import custom_space
from lwmm_hub.evaluation.networks import predictor_of
from lwmm_hub.evaluation.subjects import HubModel, identity_of_checkpoint
from lwmm_hub.fitting.running import library_net
from lwmm_hub.reference import ModelReference
from lwmm_hub.resolving import resolve

CPU = InferenceOptions(device="cpu")
State = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A model with another one, that always says the last class, in all sorts of files beside."""
    folder = zoo.write(tmp_path / "runs", zoo.segformer)
    best = sure(load_file(folder / "model.safetensors"))
    save_file(best, folder / "best.safetensors", metadata={"format": "pt"})
    torch.save(best, folder / "best.bin")
    torch.save({"state_dict": {f"module.{k}": t for k, t in best.items()}}, folder / "best.pth")
    torch.save(best, folder / "old.pt", _use_new_zipfile_serialization=False)
    weak = load_file(folder / "model.safetensors")
    copies = {f"model.{k}": t for k, t in weak.items()}
    torch.save(copies | {f"ema_model.{k}": t for k, t in best.items()}, folder / "both.pth")
    halves = [dict(list(best.items())[:50]), dict(list(best.items())[50:])]
    for name, half in zip(("x-1", "x-2"), halves, strict=True):
        save_file(half, folder / f"{name}.safetensors", metadata={"format": "pt"})
    where = {key: f"x-{1 + (key in halves[1])}.safetensors" for key in best}
    index = {"metadata": {}, "weight_map": where}
    (folder / "x.safetensors.index.json").write_text(json.dumps(index))
    return folder


def sure(state: State) -> State:
    """The network that calls everything by its last class."""
    head = "decode_head.classifier."
    bias = torch.zeros_like(state[head + "bias"])
    bias[-1] = 1.0
    return {**state, head + "weight": torch.zeros_like(state[head + "weight"]), head + "bias": bias}


def image() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 255, (40, 56, 3)).astype(np.uint8)


NAMED = (
    "best.safetensors", "best.bin", "best.pth", "old.pt", "both.pth?weights=ema",
    "x.safetensors.index.json",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMED)
def test_a_named_file_is_scored_and_teaches_itself(name: str, runs: Path) -> None:
    space = custom_space(zoo.LABELS)
    for reference, last in ((str(runs), False), (f"{runs}/{name}", True)):
        model = HubModel(reference, space, None, CPU)
        (prediction,) = model.predict([image()], "semantic")
        assert prediction.semantic is not None
        assert bool((prediction.semantic == len(zoo.LABELS) - 1).all()) == last
        checkpoint = resolve(ModelReference.parse(reference), download=True)
        with torch.no_grad():
            taught = library_net(checkpoint, CPU).scores(image()).labels()
        assert bool((taught == len(zoo.LABELS) - 1).all()) == last


def test_a_shard_index_beside_the_whole_file_is_what_the_folder_means(runs: Path) -> None:
    """Transformers would take model.safetensors; merging takes the index, and so does scoring."""
    (runs / "x.safetensors.index.json").rename(runs / "model.safetensors.index.json")
    checkpoint = resolve(ModelReference.parse(str(runs)), download=True)
    assert checkpoint.files == ("x-1.safetensors", "x-2.safetensors")
    network = predictor_of(checkpoint, CPU, "").network
    assert not network.state_dict()["decode_head.classifier.weight"].any()


@pytest.mark.parametrize("make", [*zoo.DENSE, *zoo.MASKS, zoo.vit], ids=lambda make: make.__name__)
def test_every_class_takes_named_weights_as_it_takes_a_folder(make: object, tmp_path: Path) -> None:
    zoo.write(tmp_path, make)  # type: ignore[arg-type]
    whole = Predictor.load(tmp_path, CPU).network.state_dict()
    (tmp_path / "model.safetensors").rename(tmp_path / "named.safetensors")
    checkpoint = resolve(ModelReference.parse(str(tmp_path / "named.safetensors")), download=True)
    named = predictor_of(checkpoint, CPU, "").network.state_dict()
    assert whole.keys() == named.keys()
    assert all(torch.equal(whole[key], named[key]) for key in whole)


def test_named_weights_of_another_network_are_refused(runs: Path) -> None:
    save_file({"a.weight": torch.zeros(3)}, runs / "other.safetensors", metadata={"format": "pt"})
    checkpoint = resolve(ModelReference.parse(str(runs / "other.safetensors")), download=True)
    with pytest.raises(OutputError, match=r"named in runs are not those.*lwmm-hub convert FILE"):
        predictor_of(checkpoint, CPU, "")


def test_a_legacy_file_that_changes_is_another_model(runs: Path) -> None:
    """Half-done scores and fits of it must not go on as if it were the same."""
    reference = ModelReference.parse(str(runs / "old.pt"))
    before = identity_of_checkpoint(resolve(reference, download=True))
    assert before == identity_of_checkpoint(resolve(reference, download=True))
    weak = load_file(runs / "model.safetensors")
    torch.save(weak, runs / "old.pt", _use_new_zipfile_serialization=False)
    assert before != identity_of_checkpoint(resolve(reference, download=True))


def test_a_file_of_a_repository_is_scored_whether_or_not_the_usual_one_is_in_the_cache(
    runs: Path, tmp_path: Path, hub: TestHub
) -> None:
    cwd = tmp_path / "cwd"
    for kind in ("images", "labels"):
        (cwd / "city" / kind).mkdir(parents=True)
        Image.fromarray(image() if kind == "images" else image()[..., 0] % 3).save(
            cwd / "city" / kind / "0.png"
        )
    (cwd / "city" / "id2label.json").write_text(json.dumps(dict(enumerate(zoo.LABELS))))
    hub.create_repo("org/runs", files_of(runs))
    found = {}
    with client(hub, tmp_path / "home", cwd) as run:
        for name in ("org/runs:best.safetensors", "org/runs", "org/runs:best.pth"):
            done = run("evaluate", name, "--dataset", "./city", "--json")
            assert done.code == 0, done.err
            found[name] = json.loads(done.out)["models"][0]["iou"]
    assert found["org/runs:best.safetensors"] == found["org/runs:best.pth"]
    assert found["org/runs"] != found["org/runs:best.pth"]
    assert found["org/runs:best.pth"][zoo.LABELS[0]] == 0
