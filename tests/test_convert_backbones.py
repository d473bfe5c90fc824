"""`convert --to transformers` of ResNets and Swins, in every spelling that the tables know."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from enumerators import fill, write_pth, write_safetensors
from enumerators.systems import (
    ResNetSize,
    deeplab_multi,
    fada,
    glc,
    mic_detection,
    smp_unet_resnet,
    torchvision_deeplabv3,
    torchvision_resnet,
    transformers_resnet,
)
from safetensors.numpy import load_file
from test_convert import loaded_whole, same

import lwmm_hub as lw
from lwmm_hub.errors import CheckpointError

SMALL = ResNetSize((2, 1, 2, 1), width=8, num_classes=4, head_width=8)
# no shape shows them, and SMALL is no published size
PLAIN = {"downsample_in_first_stage": False, "downsample_in_bottleneck": False}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


# ResNet ------------------------------------------------------------------------------------------

# how the system writes it -> its entries, what stands before torchvision's names, Caffe's strides
SYSTEMS = {
    "torchvision": (torchvision_resnet, "", False),
    "deeplabv3": (torchvision_deeplabv3, "backbone.", False),
    "smp": (smp_unet_resnet, "encoder.", False),
    "glc": (glc, "backbone_layer.", False),
    "fada": (fada, "feature_extractor/backbone.", False),
    "adaptsegnet": (deeplab_multi, "", True),
    "mic": (mic_detection, "backbone.body.", True),
}


def resnet_features(
    weights: Mapping[str, np.ndarray], prefix: str, size: ResNetSize, caffe: bool, image: Any
) -> Any:
    """The last feature map by torchvision's names, written from He et al. (2015), table 1.

    Caffe's networks stride in a bottleneck's first convolution, torchvision's in its second.
    """

    def tensor(key: str) -> Any:
        found = weights.get(prefix + key, weights.get(f"{prefix}stem.{key}"))
        assert found is not None, key
        return torch.from_numpy(found)

    def convolve(x: Any, key: str, bn: str, stride: int = 1) -> Any:
        kernel = tensor(f"{key}.weight")
        x = F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)
        means = [
            tensor(f"{bn}.{leaf}") for leaf in ("running_mean", "running_var", "weight", "bias")
        ]
        return F.batch_norm(x, *means)

    x = F.relu(convolve(image, "conv1", "bn1", 2))
    x = F.max_pool2d(x, 3, 2, 1)
    for i, depth, _ in size.stages:
        for b in range(depth):
            block = f"layer{i}.{b}"
            stride = 2 if b == 0 and i > 1 else 1
            first, second = (stride, 1) if caffe else (1, stride)
            y = F.relu(convolve(x, f"{block}.conv1", f"{block}.bn1", first))
            y = F.relu(convolve(y, f"{block}.conv2", f"{block}.bn2", second))
            y = convolve(y, f"{block}.conv3", f"{block}.bn3")
            if b == 0:
                x = convolve(x, f"{block}.downsample.0", f"{block}.downsample.1", stride)
            x = F.relu(x + y)
    return x


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_resnet_of_any_system_loads_whole_and_computes_the_same(
    tmp_path: Path, system: str
) -> None:
    entries, prefix, caffe = SYSTEMS[system]
    tensors = fill(entries(SMALL), seed=3)
    if system == "fada":
        parts = {
            part: {
                k.removeprefix(f"{part}/"): torch.from_numpy(v)
                for k, v in tensors.items()
                if k.startswith(part)
            }
            for part in ("feature_extractor", "classifier")
        }
        source = tmp_path / "fada.pth"
        torch.save({"iteration": 3, **parts}, source)
    else:
        source = write_pth(tmp_path / "net.pth", tensors)
    given = {"downsample_in_first_stage": False} if caffe else PLAIN
    result = lw.convert(source, tmp_path / "out", to="transformers", config=given)
    assert result.class_name == "ResNetModel"
    model = loaded_whole(result.path, "ResNetModel")
    image = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = model(image).last_hidden_state
        expected = resnet_features(tensors, prefix, SMALL, caffe, image)
        other = resnet_features(tensors, prefix, SMALL, not caffe, image)
    scale = float(expected.std())
    assert float((found - expected).abs().max()) < 1e-4 * scale
    assert float((found - other).abs().max()) > 0.1 * scale, "where it strides makes a difference"
    config = json.loads((result.path / "config.json").read_text())
    assert config["downsample_in_bottleneck"] is caffe
    assert any("Caffe" in warning for warning in result.warnings) is caffe
    dilated = system in {"deeplabv3", "fada", "adaptsegnet"}
    assert any("dilates" in warning for warning in result.warnings) is dilated
    stored = load_file(result.path / "model.safetensors")
    assert {e.key: e.shape for e in transformers_resnet(SMALL)} == {
        k: v.shape for k, v in stored.items()
    }
    frozen = not any(key.endswith("num_batches_tracked") and "layer1" in key for key in tensors)
    assert bool(result.added) is frozen


def test_a_published_resnet_needs_no_config_and_another_one_does(tmp_path: Path) -> None:
    def with_depths(*depths: int) -> Path:
        size = ResNetSize(depths, width=64)  # type: ignore[arg-type]
        shapes = {
            e.key: np.zeros(e.shape, np.float16 if e.dtype == "F32" else np.int64)
            for e in torchvision_resnet(size)
        }
        return write_safetensors(tmp_path / f"{sum(depths)}.safetensors", shapes)

    result = lw.convert(with_depths(3, 4, 6, 3), tmp_path / "r50", to="transformers")
    assert result.config_from["downsample_in_bottleneck"] == "published ResNet-50"
    assert result.config_from["depths"] == "shapes"
    assert set(result.left_out) == {"fc.weight", "fc.bias"}
    with pytest.raises(CheckpointError, match=r"downsample_in_first_stage and .* cannot be known"):
        lw.convert(with_depths(1, 1, 1, 1), tmp_path / "other", to="transformers")


def test_networks_that_only_look_like_a_resnet_are_refused(tmp_path: Path) -> None:
    tensors = fill(torchvision_resnet(SMALL), seed=3)
    squeezed = tensors | {"layer1.0.se.fc1.weight": np.ones((2, 16), np.float32)}
    grouped = tensors | {"layer2.0.conv2.weight": np.ones((8, 2, 3, 3), np.float32)}
    deep_stem = {k: v for k, v in tensors.items() if k != "conv1.weight"}
    deep_stem |= {f"conv1.{i}.weight": np.ones((8, 8, 3, 3), np.float32) for i in (0, 3, 6)}
    pooled = {
        re.sub(r"downsample\.(\d)", lambda found: f"downsample.{int(found[1]) + 1}", k): v
        for k, v in tensors.items()
    }
    streams = {f"{stream}.{k}": v for stream in ("rgb", "depth") for k, v in tensors.items()}
    for network, words in (
        (squeezed, r"'layer1\.0\.se\.fc1\.weight' inside a block"),
        (grouped, r"has the shape \(8, 2, 3, 3\)"),
        (deep_stem, r"lacks 'embedder\.embedder\.convolution\.weight'"),
        (pooled, "pools in its shortcuts"),
        (streams, "2 resnet networks alike, under 'depth.' and 'rgb.'"),
    ):
        source = write_safetensors(tmp_path / "net.safetensors", network)
        with pytest.raises(CheckpointError, match=words):
            lw.convert(source, tmp_path / "out", to="transformers", config=PLAIN)
    assert not (tmp_path / "out").exists()


# Swin --------------------------------------------------------------------------------------------

SWIN = {
    "image_size": 64,
    "patch_size": 2,
    "embed_dim": 8,
    "depths": [1, 1, 2, 1],
    "num_heads": [1, 2, 2, 4],
    "window_size": 4,
    "mlp_ratio": 2.0,
    "drop_path_rate": 0.0,
}


def swin(folder: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """A SwinModel of random values as transformers saves it, and its tensors."""
    from transformers import SwinConfig, SwinModel

    torch.manual_seed(0)
    model = SwinModel(SwinConfig(**SWIN))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    return folder, load_file(folder / "model.safetensors")


def as_microsoft(tensors: Mapping[str, np.ndarray], timm: bool = False) -> dict[str, np.ndarray]:
    """The same values as Microsoft's code (or timm's) writes them, with its constants and head."""
    names = {
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "attention.output.dense": "attn.proj",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
    }
    written: dict[str, np.ndarray] = {}
    for key, value in tensors.items():
        if ".attention.self.relative" in key:
            index = np.zeros((16, 16), np.int64)
            block = key.removeprefix("encoder.").partition(".attention")[0]
            written[f"{block}.attn.relative_position_bias_table"] = value
            written[f"{block}.attn.relative_position_index"] = index
            written[f"{block}.attn_mask"] = np.zeros((4, 16, 16), np.float32)
        elif ".attention.self." in key:
            block, _, rest = key.removeprefix("encoder.").partition(".attention.self.")
            leaf = rest.partition(".")[2]
            start = key[: -len(rest)]
            fused = [tensors[f"{start}{part}.{leaf}"] for part in ("query", "key", "value")]
            written[f"{block}.attn.qkv.{leaf}"] = np.concatenate(fused)
        elif key.startswith("encoder."):
            short = key.removeprefix("encoder.")
            for theirs, ours in names.items():
                if f".{theirs}." in short:
                    short = short.replace(f".{theirs}.", f".{ours}.")
                    break
            if timm and ".downsample." in short:
                stage = int(short.split(".")[1])
                short = short.replace(f"layers.{stage}.", f"layers.{stage + 1}.")
            written[short] = value
        else:
            for theirs, ours in (
                ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
                ("embeddings.norm", "patch_embed.norm"),
                ("layernorm", "norm"),
            ):
                if key.startswith(f"{theirs}."):
                    written[ours + key.removeprefix(theirs)] = value
    return written | {
        "head.weight": np.ones((3, 64), np.float32),
        "head.bias": np.ones(3, np.float32),
    }


@pytest.mark.parametrize("spelling", ["Microsoft", "timm", "transformers"])
def test_a_swin_of_any_spelling_loads_whole_with_the_same_values(
    tmp_path: Path, spelling: str
) -> None:
    folder, tensors = swin(tmp_path / "swin")
    if spelling == "transformers":
        source = folder / "model.safetensors"
        (folder / "config.json").unlink()
    else:
        source = write_pth(tmp_path / "swin.pth", as_microsoft(tensors, spelling == "timm"))
    result = lw.convert(source, tmp_path / "out", to="transformers")
    assert result.class_name == "SwinModel"
    same(load_file(result.path / "model.safetensors"), tensors)
    model = loaded_whole(result.path, "SwinModel")
    config = {k: v for k, v in SWIN.items() if k not in {"image_size", "drop_path_rate"}}
    assert {name: getattr(model.config, name) for name in config} == config
    assert set(result.config_from.values()) == {"shapes"}
    if spelling != "transformers":
        why = result.left_out
        assert why["layers.0.blocks.0.attn_mask"] == "a constant of the window size"
        assert (
            why["layers.0.blocks.0.attn.relative_position_index"] == "a constant of the window size"
        )
        assert why["head.weight"] == "not part of a SwinModel"
        assert result.split == 2 * sum(SWIN["depths"])  # type: ignore[arg-type]
    from transformers import SwinModel

    if spelling != "transformers":
        image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            ours, theirs = (
                m.eval()(image).last_hidden_state
                for m in (model, SwinModel.from_pretrained(folder))
            )
        assert torch.equal(ours, theirs)


def test_a_swin_without_its_last_norm_is_refused(tmp_path: Path) -> None:
    """UperNet's and Mask2Former's backbones have norms per feature map instead."""
    _, tensors = swin(tmp_path / "swin")
    backbone = {f"backbone.{k}": v for k, v in tensors.items() if not k.startswith("layernorm")}
    source = write_safetensors(tmp_path / "upernet.safetensors", backbone)
    with pytest.raises(CheckpointError, match=r"lacks 'layernorm\.weight' and 1 more"):
        lw.convert(source, tmp_path / "out", to="transformers")
