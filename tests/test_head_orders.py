"""Heads as mmseg and torchvision register them, against the order in which their modules run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from deeplabs import shapes as deeplab_shapes
from safetensors.torch import save_file
from torch import Tensor, nn

import lwmm_hub as lw
from lwmm_hub.key_map import natural_order, registration_order

CLASSES = 5


class ConvModule(nn.Module):
    """mmcv's: a convolution and its norm."""

    def __init__(self, inner: int, outer: int, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inner, outer, 1, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outer)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))  # type: ignore[no-any-return]


class Separable(nn.Module):
    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.depthwise_conv = ConvModule(inner, inner, groups=inner)
        self.pointwise_conv = ConvModule(inner, outer)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise_conv(self.depthwise_conv(x))  # type: ignore[no-any-return]


class DecodeHead(nn.Module):
    """mmseg's base class makes the classifier before the head makes anything."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_seg = nn.Conv2d(4, CLASSES, 1)


class FCNHead(DecodeHead):
    def __init__(self, inner: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(ConvModule(inner, 4), ConvModule(4, 4))
        self.conv_cat = ConvModule(inner + 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_cat(torch.cat([x, self.convs(x)], 1))
        return self.conv_seg(x)  # type: ignore[no-any-return]


class NonLocalHead(FCNHead):
    """A block that runs between the convolutions and is registered behind them."""

    def __init__(self, inner: int) -> None:
        super().__init__(inner)
        self.nl_block = ConvModule(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.convs[1](self.nl_block(self.convs[0](x)))
        return self.conv_seg(self.conv_cat(torch.cat([x, y], 1)))  # type: ignore[no-any-return]


class ASPPHead(DecodeHead):
    def __init__(self, inner: int) -> None:
        super().__init__()
        self.image_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvModule(inner, 4))
        self.aspp_modules = nn.ModuleList(ConvModule(inner, 4) for _ in range(4))
        self.bottleneck = ConvModule(5 * 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_seg(self.pyramid(x))  # type: ignore[no-any-return]

    def pyramid(self, x: Tensor) -> Tensor:
        pooled = self.image_pool(x).expand(-1, -1, *x.shape[2:])
        features = [pooled, *(module(x) for module in self.aspp_modules)]
        return self.bottleneck(torch.cat(features, 1))  # type: ignore[no-any-return]


class SeparableASPPHead(ASPPHead):
    """DeepLabV3+."""

    def __init__(self, inner: int) -> None:
        super().__init__(inner)
        for i in (1, 2, 3):
            self.aspp_modules[i] = Separable(inner, 4)
        self.c1_bottleneck = ConvModule(inner, 3)
        self.sep_bottleneck = nn.Sequential(Separable(4 + 3, 4), Separable(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        deep = self.pyramid(x)
        x = self.sep_bottleneck(torch.cat([deep, self.c1_bottleneck(x)], 1))
        return self.conv_seg(x)  # type: ignore[no-any-return]


def torchvision_fcn(inner: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inner, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.Conv2d(4, CLASSES, 1)
    )


class LRASPP(nn.Module):
    """torchvision's: the two classifiers are added up."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.cbr = nn.Sequential(nn.Conv2d(inner, 4, 1), nn.BatchNorm2d(4))
        self.scale = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(inner, 4, 1))
        self.low_classifier = nn.Conv2d(inner, CLASSES, 1)
        self.high_classifier = nn.Conv2d(4, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.cbr(x) * self.scale(x)
        return self.low_classifier(x) + self.high_classifier(y)  # type: ignore[no-any-return]


def as_it_runs(head: nn.Module, inner: int, before: str) -> list[str]:
    """The head's modules with parameters in the order of the forward pass."""
    ran: list[str] = []
    for name, module in head.named_modules():
        if list(module.parameters(recurse=False)):
            module.register_forward_pre_hook(lambda *_, name=name: ran.append(before + name))
    head.eval()(torch.zeros(1, inner, 2, 2))
    return ran


Head = tuple[str, Callable[[int], nn.Module], str | None]
HEADS: dict[str, Head] = {  # name of the head, of its auxiliary head
    "FCN of mmseg": ("decode_head", FCNHead, "auxiliary_head"),
    "non-local of mmseg": ("decode_head", NonLocalHead, "auxiliary_head"),
    "DeepLabV3 of mmseg": ("decode_head", ASPPHead, "auxiliary_head"),
    "DeepLabV3+ of mmseg": ("decode_head", SeparableASPPHead, "auxiliary_head"),
    "FCN of torchvision": ("classifier", torchvision_fcn, "aux_classifier"),
    "LR-ASPP of torchvision": ("classifier", LRASPP, None),
}
INNER = 32


def network(name: str, seed: int) -> tuple[dict[str, Tensor], list[str]]:
    """A ResNet with a head in the order of registration; the head's modules as they run."""
    torch.manual_seed(0)
    title, make, auxiliary = HEADS[name]
    shapes = {
        f"backbone.{key}": shape
        for key, shape in deeplab_shapes().items()
        if "conv2d_list" not in key
    }
    values = {key: torch.rand(shape) for key, shape in shapes.items() if shape}
    runs: list[str] = []
    for where, head in ((title, make), (auxiliary, FCNHead if title == "decode_head" else make)):
        if where is not None:
            module = head(INNER)
            state = module.state_dict()
            values |= {f"{where}.{key}": v for key, v in state.items() if v.ndim}
            runs = [*as_it_runs(module, INNER, f"{where}."), *runs]
    own = torch.Generator().manual_seed(seed)
    return {k: v + 0.05 * torch.rand(v.shape, generator=own) for k, v in values.items()}, runs


def planned(values: Mapping[int, dict[str, Tensor]], folder: Path, ending: str) -> lw.MergePlan:
    paths = []
    for seed, state in values.items():
        paths.append(folder / f"{seed}.{ending}")
        if ending == "pth":
            torch.save({"state_dict": state, "meta": {}}, paths[-1])
        else:
            save_file(state, paths[-1])
    return lw.plan(*paths)


@pytest.mark.parametrize("name", HEADS)
def test_a_head_is_merged_in_the_order_in_which_it_runs_in_both_formats(
    name: str, tmp_path: Path
) -> None:
    """The auxiliary head before the head, the classifier with the anchor's weights alone."""
    networks = {seed: network(name, seed) for seed in (1, 2)}
    states = {seed: state for seed, (state, _) in networks.items()}
    runs = networks[1][1]
    plans = {ending: planned(states, tmp_path, ending) for ending in ("pth", "safetensors")}
    for plan in plans.values():
        keys = list(dict.fromkeys(t.key.rpartition(".")[0] for t in plan.merged))
        # neither names nor registration say that a block runs between two of a sequence
        expected = runs if "non-local" not in name else before_fusion(runs, "decode_head.nl_block")
        assert [key for key in keys if not key.startswith("backbone.")] == expected
        assert plan.layers[-1].weights == (1.0, 0.0)
        classifier = plan.merged[-1].key.rpartition(".")[0]
        assert classifier == runs[-1]
    weights = [{t.key: t.weights for t in plan.merged} for plan in plans.values()]
    assert weights[0] == weights[1]


def before_fusion(modules: list[str], prefix: str) -> list[str]:
    """The modules with those below `prefix` put before the convolution that fuses."""
    found = [module for module in modules if module.startswith(prefix)]
    rest = [module for module in modules if module not in found]
    at = rest.index("decode_head.conv_cat.conv")
    return [*rest[:at], *found, *rest[at:]]


# --------------------------------------------------------------------------- by key lists alone


def order_of(keys: list[str]) -> list[list[str]]:
    """Modules in the order of registration and in that of the names."""
    weights = [f"{key}.weight" for key in keys]
    orders = registration_order(weights), natural_order(sorted(weights))
    return [
        [k.removesuffix(".weight") for k in sorted(o.ranks, key=o.ranks.__getitem__)]
        for o in orders
    ]


def test_each_head_of_a_cascade_keeps_its_own_classifier() -> None:
    registered, named = order_of(
        ["backbone.a", "decode_head.0.conv_seg", "decode_head.0.convs.0.conv",
         "decode_head.1.conv_seg", "decode_head.1.bottleneck.conv"]
    )  # fmt: skip
    assert registered == named == [
        "backbone.a", "decode_head.0.convs.0.conv", "decode_head.0.conv_seg",
        "decode_head.1.bottleneck.conv", "decode_head.1.conv_seg",
    ]  # fmt: skip


def test_several_auxiliary_heads_stand_between_the_neck_and_the_head_below_a_wrapper() -> None:
    registered, named = order_of(
        ["net.backbone.a", "net.neck.0", "net.decode_head.conv_seg", "net.decode_head.fuse",
         "net.auxiliary_head.0.conv_seg", "net.auxiliary_head.0.convs.0",
         "net.auxiliary_head.1.conv_seg"]
    )  # fmt: skip
    assert registered == named == [
        "net.backbone.a", "net.neck.0", "net.auxiliary_head.0.convs.0",
        "net.auxiliary_head.0.conv_seg", "net.auxiliary_head.1.conv_seg",
        "net.decode_head.fuse", "net.decode_head.conv_seg",
    ]  # fmt: skip


def test_names_of_a_classic_unet_are_in_its_order() -> None:
    layers = [
        "inc.double_conv.0",
        "down1.conv.0",
        "down2.conv.0",
        "up1.conv.0",
        "up2.conv.0",
        "outc",
    ]
    assert order_of(layers) == [layers, layers]


def test_a_head_that_is_registered_before_its_backbone_stays_there() -> None:
    """Nothing is moved but what is known to run late."""
    layers = ["head.a", "aux.b", "backbone.c", "other.d"]
    assert order_of(layers)[0] == layers
