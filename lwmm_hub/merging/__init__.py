"""Run a plan over bytes: chunked, threaded, in a few MiB of memory whatever the models' size.

The output is cut into ranges. For each range a worker reads the anchor's and the donors' bytes
(neighbours in one call), adds them with their layers' weights, and writes the result at its place;
the caller hashes the ranges in order meanwhile, or makes one itself. Every element is

    theta_p - sum over the others of H_i (theta_p - theta_i)

in float32 (float64 where a float64 takes part), summed in the order of the models and rounded once,
to nearest even; p is the anchor, or where it has no weight the model with the largest. This form
gives a parameter back bit for bit where all models agree, signed zeros included, and loses nothing
to an anchor of no weight with far larger values. The result depends neither on the number of
threads nor on the size of the ranges.
"""

from __future__ import annotations

from lwmm_hub.merging.positional import read_at, write_at
from lwmm_hub.merging.segments import OutputTensor, output_tensors
from lwmm_hub.merging.streaming import Progress, TargetFile, merge_files

__all__ = [
    "OutputTensor",
    "Progress",
    "TargetFile",
    "merge_files",
    "output_tensors",
    "read_at",
    "write_at",
]
