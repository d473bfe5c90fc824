"""Write the SegFormers of one case: `models.py FOLDER SIZE DTYPE FORMAT CLASSES...`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from enumerators import B5, SegformerSize, ancestor, finetuned, write_transformers_folder
from enumerators import with_classes as classified

SIZES = {
    "B5": B5,
    "1.2 GB": SegformerSize(B5.depths, (120, 240, 600, 960), decoder_width=1440),
}


def main(folder: str, name: str, dtype: str, format: str, *classes: str) -> None:
    size = SIZES[name]
    common = ancestor(size, seed=0)
    for i, number in enumerate(classes):
        values = finetuned(classified(common, int(number), seed=i), seed=i + 1)
        model = write_transformers_folder(Path(folder) / str(i), values, size, dtype=dtype)  # type: ignore[arg-type]
        if format == "pth":
            save_pth(model)


def save_pth(model: Path) -> None:
    """Save the weights of a folder as `torch.save` does, instead of as safetensors."""
    import torch
    from safetensors.torch import load_file

    weights = model / "model.safetensors"
    torch.save(load_file(weights), model / "pytorch_model.bin")
    weights.unlink()


if __name__ == "__main__":
    main(*sys.argv[1:])
