"""What each module of a backbone does, by its place in the model that transformers builds.

A walk goes through a built backbone and says the role of each module it meets. Two classes of one
family that were built from different code (Swin of Mask2Former and of MaskFormer, MiT of SegFormer
and of GLPN, ...) have a walk each; that equal roles do equal work is checked by a forward pass
(`test_equal_roles_do_equal_work`), not believed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import nn

Role = tuple[str, str]  # role, path of the module below the backbone

UNUSED = "unused_norm"  # runs, but no feature map passes through it

_BLOCK = {
    "norm_attention": "layernorm_before",
    "query": "attention.q_proj",
    "key": "attention.k_proj",
    "value": "attention.v_proj",
    "output": "attention.o_proj",
    "norm_mlp": "layernorm_after",
    "mlp_in": "mlp.fc1",
    "mlp_out": "mlp.fc2",
}
_OLD_BLOCK = {
    **_BLOCK,
    "query": "attention.attention.query",
    "key": "attention.attention.key",
    "value": "attention.attention.value",
    "output": "attention.output.dense",
    "mlp_in": "intermediate.dense",
    "mlp_out": "output.dense",
}
_SWIN_BLOCK = {**_BLOCK, "positions": "attention.relative_position_bias"}
_MASKFORMER_BLOCK = {
    **_OLD_BLOCK,
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "positions": "attention.self",  # it owns the table
}
_MIT_BLOCK = {
    **_BLOCK,
    "reduce": "attention.sequence_reduction.sequence_reduction",
    "norm_reduced": "attention.sequence_reduction.layer_norm",
    "mlp_conv": "mlp.dwconv.dwconv",
}
_GLPN_BLOCK = {
    "norm_attention": "layer_norm_1",
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "reduce": "attention.self.sr",
    "norm_reduced": "attention.self.layer_norm",
    "output": "attention.output.dense",
    "norm_mlp": "layer_norm_2",
    "mlp_in": "mlp.dense1",
    "mlp_conv": "mlp.dwconv.dwconv",
    "mlp_out": "mlp.dense2",
}
_DINO_BLOCK = {
    **_BLOCK,
    "norm_attention": "norm1",
    "scale_attention": "layer_scale1",
    "norm_mlp": "norm2",
    "scale_mlp": "layer_scale2",
}
_EOMT_BLOCK = {**_DINO_BLOCK, "output": "attention.out_proj"}
_DINOV3_BLOCK = {**_DINO_BLOCK, "mlp_in": "mlp.up_proj", "mlp_out": "mlp.down_proj"}


def _blocks(name: str, path: str, count: int, block: Mapping[str, str]) -> Iterator[Role]:
    for i in range(count):
        for role, module in block.items():
            yield f"{name}{i}.{role}", f"{path}.{i}.{module}"


def _count(backbone: nn.Module, path: str) -> int:
    return len(list(backbone.get_submodule(path).children()))


def _swin(
    backbone: nn.Module, block: Mapping[str, str], core: str = "", last_norm: str = "last_norm"
) -> Iterator[Role]:
    yield "patches", f"{core}embeddings.patch_embeddings.projection"
    yield "norm_patches", f"{core}embeddings.norm"
    layers = f"{core}encoder.layers"
    for s in range(_count(backbone, layers)):
        blocks = f"{layers}.{s}.blocks"
        yield from _blocks(f"stage{s}.block", blocks, _count(backbone, blocks), block)
        yield f"stage{s}.down_norm", f"{layers}.{s}.downsample.norm"
        yield f"stage{s}.down", f"{layers}.{s}.downsample.reduction"
    yield last_norm, f"{core}layernorm"


def _swin_of_classifier(backbone: nn.Module) -> Iterator[Role]:
    yield from _swin(backbone, _SWIN_BLOCK)


def _swin_backbone(backbone: nn.Module) -> Iterator[Role]:
    yield from _swin(backbone, _SWIN_BLOCK, "swin.", last_norm=UNUSED)  # 4.57 had none
    for s in range(_count(backbone, "swin.encoder.layers")):
        yield f"stage{s}.norm_map", f"hidden_states_norms.stage{s + 1}"


def _maskformer_swin(backbone: nn.Module) -> Iterator[Role]:
    yield from _swin(backbone, _MASKFORMER_BLOCK, "model.", last_norm=UNUSED)
    for s in range(_count(backbone, "model.encoder.layers")):
        yield f"stage{s}.norm_map", f"hidden_states_norms.{s}"


def _mit(backbone: nn.Module) -> Iterator[Role]:
    for s in range(_count(backbone, "stages")):
        yield f"stage{s}.patches", f"stages.{s}.patch_embeddings.proj"
        yield f"stage{s}.norm_patches", f"stages.{s}.patch_embeddings.layer_norm"
        blocks = f"stages.{s}.blocks"
        yield from _blocks(f"stage{s}.block", blocks, _count(backbone, blocks), _MIT_BLOCK)
        yield f"stage{s}.norm", f"stages.{s}.layer_norm"


def _glpn(backbone: nn.Module) -> Iterator[Role]:
    for s in range(_count(backbone, "block")):
        yield f"stage{s}.patches", f"patch_embeddings.{s}.proj"
        yield f"stage{s}.norm_patches", f"patch_embeddings.{s}.layer_norm"
        blocks = f"block.{s}"
        yield from _blocks(f"stage{s}.block", blocks, _count(backbone, blocks), _GLPN_BLOCK)
        yield f"stage{s}.norm", f"layer_norm.{s}"


def _vit(
    layers: str, block: Mapping[str, str], last_norm: str = "layernorm", **more: str
) -> Callable[[nn.Module], Iterator[Role]]:
    """A plain vision transformer; `more` is further modules of a block by role."""

    def walk(backbone: nn.Module) -> Iterator[Role]:
        yield "tokens", "embeddings"  # cls_token and its kin
        yield "patches", "embeddings.patch_embeddings.projection"
        yield "patches", "embeddings.patch_embeddings"  # DINOv3's is the convolution itself
        yield "positions of patches", "embeddings.position_embeddings"  # EoMT's have no cls_token
        count = _count(backbone, layers)
        yield from _blocks("block", layers, count, {**block, **more})
        yield "last_norm", last_norm
        yield "norm_pooled", "pooler.layernorm"

    return walk


def _as_named(backbone: nn.Module) -> Iterator[Role]:
    """One code for all classes of the family: a module's role is its path."""
    for path, _ in backbone.named_modules():
        yield path, path


_SCALES = {"scales": ""}  # BEiT's lambda_1 and lambda_2 belong to the block itself

WALKS: dict[str, Callable[[nn.Module], Iterator[Role]]] = {
    "swin": _swin_of_classifier,
    "swin backbone": _swin_backbone,
    "maskformer swin": _maskformer_swin,
    "mit": _mit,
    "glpn": _glpn,
    "vit": _vit("layers", _BLOCK),
    "dpt": _vit("encoder.layer", _OLD_BLOCK),
    "beit": _vit("layers", _BLOCK, positions="relative_position_bias", **_SCALES),
    "data2vec": _vit(
        "encoder.layer",
        _OLD_BLOCK,
        positions="attention.attention.relative_position_bias",
        **_SCALES,
    ),
    "dinov2": _vit("encoder.layer", _DINO_BLOCK),
    "eomt": _vit("layers", _EOMT_BLOCK),
    "dinov3": _vit("model.layer", _DINOV3_BLOCK, last_norm="norm"),
    "eomt dinov3": _vit("layers", _DINOV3_BLOCK),
    "as named": _as_named,
}


def backbone_roles(model: nn.Module, walk: str, backbone: str) -> dict[str, str]:
    """Role of each tensor of the backbone that a file holds -> its name in `state_dict`."""
    top = model.get_submodule(backbone)
    found: dict[str, str] = {}
    for role, path in WALKS[walk](top):
        path = path.rstrip(".")
        try:
            module = top.get_submodule(path)
        except AttributeError:  # no such module in this configuration: no bias table, no pooler
            continue
        full = ".".join(part for part in (backbone, path) if part)
        for leaf in owned(module):
            found.setdefault(f"{role}.{leaf}".lstrip("."), f"{full}.{leaf}".lstrip("."))
    return found


def owned(module: nn.Module) -> list[str]:
    """Names of the tensors that a module owns itself and that files hold."""
    hidden = module._non_persistent_buffers_set
    tensors: dict[str, torch.Tensor | None] = {**module._parameters, **module._buffers}
    return [leaf for leaf, value in tensors.items() if value is not None and leaf not in hidden]
