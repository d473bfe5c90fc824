"""The ten lines that everyone writes first: average what has the same name and shape."""

import sys

import torch
from safetensors.torch import load_file, save_file

*inputs, output = sys.argv[1:]
load = torch.load if inputs[0].endswith(".bin") else load_file
merged, *donors = [load(path) for path in inputs]
for key, value in merged.items():
    theirs = [donor[key] for donor in donors if key in donor and donor[key].shape == value.shape]
    if value.is_floating_point() and theirs:
        merged[key] = sum(theirs, value) / (1 + len(theirs))
save_file(merged, output)
