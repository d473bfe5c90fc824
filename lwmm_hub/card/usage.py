"""Code blocks of a card: how to load the merge, and how to make it again."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from typing import Any

from lwmm_hub.card.escaping import Markdown, fence
from lwmm_hub.card.linting import valid_repo_id
from lwmm_hub.card.naming import last_part
from lwmm_hub.card.redacting import redact
from lwmm_hub.display.text import one_line

RECIPE = "lwmm_recipe.yaml"  # as `writing` calls it, which stands below this room

_SEGMENTATION = (
    "labels = processor.post_process_semantic_segmentation"
    "(outputs, target_sizes=[image.size[::-1]])[0]",
    "print(sorted({model.config.id2label[i] for i in labels.unique().tolist()}))",
)
LOADERS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (r"\w+ForSemanticSegmentation", "AutoModelForSemanticSegmentation", _SEGMENTATION),
    (
        r"\w+ForUniversalSegmentation|MaskFormerForInstanceSegmentation",
        "AutoModelForUniversalSegmentation",
        _SEGMENTATION,
    ),
    (
        r"\w+ForImageClassification",
        "AutoModelForImageClassification",
        ("print(model.config.id2label[int(outputs.logits.argmax())])",),
    ),
    (
        r"\w+ForObjectDetection",
        "AutoModelForObjectDetection",
        (
            "found = processor.post_process_object_detection"
            "(outputs, target_sizes=[image.size[::-1]])[0]",
            "print([model.config.id2label[i] for i in found['labels'].tolist()])",
        ),
    ),
    (
        r"\w+ForDepthEstimation",
        "AutoModelForDepthEstimation",
        ("print(outputs.predicted_depth.shape)",),
    ),
)
"""Architecture -> the class that loads it, and what is done with its outputs."""


def use_code(manifest: Mapping[str, Any]) -> Markdown:
    """Python that loads the merge: with transformers where it can, else the bare weights."""
    output = manifest.get("output") or {}
    architecture = str(output.get("architecture") or "")
    known = re.fullmatch(r"[A-Za-z]\w*", architecture, re.ASCII)
    if output.get("library_name") == "transformers" and known:
        return fence(_transformers_code(output, architecture), "python")
    return fence(_weights_code(output), "python")


def use_note(manifest: Mapping[str, Any]) -> Markdown:
    """What to change in the code before it runs."""
    output = manifest.get("output") or {}
    if _repository(output):  # the commit that a card goes into is not known when it is written
        return Markdown("Put a commit of this repository in place of `main` to pin what is loaded.")
    return Markdown(
        "The folder is where you put this model. On the Hub, write the repository's id and "
        'pin it with `revision="<commit>"`.'
    )


def reproduce_code(manifest: Mapping[str, Any]) -> Markdown:
    """Commands that merge again from the recipe and compare the hashes, all run in one folder.

    That is any folder for a model of the Hub, and the one in which the merged folder lies for a
    local one, since there the paths of the card's other code lead to it, too.
    """
    output = manifest.get("output") or {}
    version = redact(one_line(str(manifest.get("lwmm_hub") or "")))
    pinned = f"=={version}" if re.fullmatch(r"[\w.+-]+", version, re.ASCII) else ""
    repository = _repository(output)
    if repository:
        given = _given(manifest)
        paths = ", and your copies of the local models as PATH" if given else ""
        commands = [
            f"# with lwmm-hub{pinned}{paths}",
            f"hf download {repository} {RECIPE} --local-dir .",
            f"lwmm-hub merge --recipe {RECIPE} -o again{given}",
            f"lwmm-hub verify {repository}{given}",
        ]
    else:
        folder = _folder(output)
        commands = [
            f"# with lwmm-hub{pinned}, from the folder that holds {folder}",
            f"lwmm-hub merge --recipe {shlex.quote(f'{folder}/{RECIPE}')}"
            f" -o {shlex.quote(f'{folder}-again')}",
            f"lwmm-hub verify {shlex.quote(folder)}",
        ]
    return fence("\n".join(commands), "bash")


def _given(manifest: Mapping[str, Any]) -> str:
    """The options that say where the models are of which a pushed recipe has but the label."""
    models = (manifest.get("plan") or {}).get("models") or []
    labels = [redact(one_line(str(model.get("label")))) for model in models if model.get("local")]
    return "".join(f" --parent {shlex.quote(f'{label}=PATH')}" for label in labels)


def _transformers_code(output: Mapping[str, Any], architecture: str) -> str:
    loader = architecture
    after: tuple[str, ...] = ("print({name: value.shape for name, value in outputs.items()})",)
    for pattern, auto_class, lines in LOADERS:
        if re.fullmatch(pattern, architecture):
            loader, after = auto_class, lines
            break
    where = _where(output)
    return "\n".join(
        [
            "from PIL import Image",
            f"from transformers import AutoImageProcessor, {loader}",
            "",
            f"processor = AutoImageProcessor.from_pretrained({where})",
            f"model = {loader}.from_pretrained({where})",
            'image = Image.open("image.jpg").convert("RGB")',
            'outputs = model(**processor(image, return_tensors="pt"))',
            *after,
        ]
    )


def _weights_code(output: Mapping[str, Any]) -> str:
    repository, files = _repository(output), _weight_files(output)
    if output.get("format") in ("pth", "pytorch"):
        load, call = "import torch", "torch.load({}, weights_only=True)"
    else:
        load, call = "from safetensors.torch import load_file", "load_file({})"
    lines = [load]
    if repository:
        lines.insert(0, "from huggingface_hub import hf_hub_download")
        each = f'hf_hub_download({_literal(repository)}, name, revision="main")'
    else:
        each = f"{_literal(_folder(output) + '/')} + name"
    lines += [
        "",
        f"names = {json.dumps(files)}",
        "weights = {}",
        "for name in names:",
        f"    weights |= {call.format(each)}",
        "# `model` is the anchor's own class, built by the anchor's own code",
        "model.load_state_dict(weights)",
    ]
    return "\n".join(lines)


def _where(output: Mapping[str, Any]) -> str:
    repository = _repository(output)
    if not repository:
        return _literal(_folder(output))
    return f'{_literal(repository)}, revision="main"'


def _repository(output: Mapping[str, Any]) -> str | None:
    repository = output.get("repository")
    return repository if isinstance(repository, str) and valid_repo_id(repository) else None


def _folder(output: Mapping[str, Any]) -> str:
    return f"./{_file_name(str(output.get('name') or 'merged'))}"


def _weight_files(output: Mapping[str, Any]) -> list[str]:
    names = [_file_name(name) for name in output.get("files") or {}]
    weights = [n for n in names if n.endswith((".safetensors", ".pth", ".pt", ".bin"))]
    return weights or ["model.safetensors"]


def _file_name(path: str) -> str:
    return redact(one_line(last_part(path))) or "merged"


def _literal(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)
