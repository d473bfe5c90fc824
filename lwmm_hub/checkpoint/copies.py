"""What training code calls what it saves: students, averages of them, and what is no network."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from lwmm_hub.checkpoint.entries import TensorEntry

# Keys under which training code saves the weights, most wanted first. Several keys in a row are
# parts of one model.
STUDENTS: tuple[tuple[str, ...], ...] = (
    ("state_dict",),  # mmcv, Lightning, MaxSquare
    ("model_state_dict",),  # GLC
    ("model_state",),
    ("model",),  # DETR, MIC detection
    ("net",),
    ("network",),
    ("module",),  # DeepSpeed
    ("params",),  # BasicSR
    ("student",),  # DINO, mean teachers
    ("student_state_dict",),
    ("student_model",),
    ("model_student",),
    ("feature_extractor", "classifier"),  # FADA
)
# averages of a student over its training
AVERAGES: tuple[tuple[str, ...], ...] = (
    ("params_ema",),
    ("state_dict_ema",),  # timm
    ("ema_state_dict",),
    ("model_ema",),  # torchvision
    ("model_ema_state_dict",),
    ("model_state_dict_ema",),
    ("ema_model",),
    ("ema_model_state_dict",),
    ("ema",),
    ("ema_state",),  # d2go
    ("ema_weights",),
    ("ema_params",),
    ("net_ema",),
    ("ema_net",),
    ("teacher",),
    ("teacher_state_dict",),
    ("teacher_model",),
    ("model_teacher",),
    ("average_model_state",),  # Lightning's StochasticWeightAveraging
    ("swa_state_dict",),
    ("swa_model",),
)
WRAPPERS = (*STUDENTS, *AVERAGES)
AVERAGE_RANKS = {row[0]: rank for rank, row in enumerate(AVERAGES)}

# Who loads these files again finds the average where the weights are expected, and the student
# aside: key of the average, key of the student, a key that stands beside both, one that stands in
# the student's, and who does it.
_SWAPS = (
    ("state_dict", "ema_state_dict", None, "steps", "mmengine's EMAHook"),
    ("state_dict", "current_model_state", "averaging_state", None, "Lightning's WeightAveraging"),
)

# keys in one state dict: of a student, of its average
PAIRS = (
    ("student.", "teacher."),  # mmdet's semi-supervised detectors, DINOv2
    ("modelStudent.", "modelTeacher."),  # unbiased teacher
    ("model.", "model_ema."),
    ("model.", "ema."),
    ("net.", "net_ema."),
    ("net.", "ema_net."),
)

# averages whose names are their student's without dots, in one state dict: what stands before the
# student's names, before the average's, what is there for a dot, and who does it
_DOTLESS = (
    ("", "ema_", "_", "mmcv's EMAHook"),
    ("model.", "model_ema.", "", "LitEma"),
)
_DOTLESS_COUNTERS = ("model_ema.decay", "model_ema.num_updates")

# what averages count beside their tensors, which all have `module.` before them: torch, mmengine
_COUNTERS = ("n_averaged", "steps")

_OPTIMIZERS = ("optimizer", "optimiser", "scheduler", "scaler")
_OPTIMIZER_WORDS = frozenset({"opt", "opts", "optim", "optims", "sched"})
# a name of nothing but these words, and one of the first, is that of numbers about a run
_SUBJECTS = frozenset(
    (
        *("rng", "random", "metric", "metrics", "loss", "losses"),
        *("history", "score", "scores", "meters", "confusion"),
    )
)
_RECORDS = _SUBJECTS | {
    *("state", "states", "cpu", "cuda", "torch", "numpy", "generator"),
    *("best", "last", "train", "val", "test", "matrix"),
}
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_MAX_NAME = 128  # characters of a key that are looked at; the same long one may stand anywhere

# put before every key by wrappers of modules
PREFIXES = ("module.", "_orig_mod.")  # DataParallel, torch.compile
MAX_PREFIXES = 16  # taken off; each is looked for in every key

ALIKE = 0.9  # the share of an average's tensors that another dictionary has, if it is the student


def is_optimizer(key: object, value: object) -> bool:
    """Whether a dictionary is the state of an optimizer or the like, by its name or its structure.

    >>> is_optimizer("opt_G", {}), is_optimizer("optimal_net", {}), is_optimizer("optics", {})
    (True, False, False)
    """
    if isinstance(value, dict) and "state" in value and "param_groups" in value:
        return True
    if not isinstance(key, str):
        return False
    name = key[:_MAX_NAME]
    low = name.lower()
    if any(word in low for word in _OPTIMIZERS):
        return True
    return ("opt" in low or "sched" in low) and not _OPTIMIZER_WORDS.isdisjoint(_words(name))


def is_record(key: object) -> bool:
    """Whether a name says that its tensors are numbers about a run, no weights.

    >>> is_record("rng_state"), is_record("best_metrics"), is_record("metric_head")
    (True, True, False)
    """
    words = set(_words(key[:_MAX_NAME])) if isinstance(key, str) else set[str]()
    return words <= _RECORDS and not words.isdisjoint(_SUBJECTS)


def _words(name: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(name)]


def swapped(value: Mapping[object, object]) -> tuple[str, str, str] | None:
    """Where a dictionary keeps the average under the student's name: (average, student, who)."""
    for average, student, beside, within, who in _SWAPS:
        other = value.get(student)
        if not isinstance(value.get(average), dict) or not isinstance(other, dict):
            continue
        if (beside is None or beside in value) and (within is None or within in other):
            return average, student, who
    return None


def counters(entries: Mapping[str, TensorEntry]) -> list[str]:
    """The keys by which an average counts its steps: they are no weights of its network."""
    found = [key for key in _COUNTERS if key in entries and entries[key].elements == 1]
    rest = (key for key in entries if key not in found)
    if len(found) == len(entries) or not all(key.startswith(PREFIXES[0]) for key in rest):
        return []
    return found


def dotless_average(entries: Mapping[str, TensorEntry]) -> tuple[dict[str, str], str]:
    """Key of a student -> key of its average, which is the same without dots, and who writes so.

    Nothing where a key that begins like an average's is none, or could be that of two tensors.
    Batch norms' statistics have no average.

    >>> entry = TensorEntry("", "F32", (2,), "f", 0)
    >>> dotless_average(dict.fromkeys(["a.b", "a.c", "ema_a_b", "ema_a_c"], entry))[0]
    {'a.b': 'ema_a_b', 'a.c': 'ema_a_c'}
    """
    for student, average, dot, who in _DOTLESS:
        copies = {
            key
            for key in entries
            if key.startswith(average) and "." not in key[len(average) :]
            if key not in _DOTLESS_COUNTERS
        }
        if len(copies) < 2:
            continue
        found: dict[str, str] = {}
        for key, entry in entries.items():
            if key in copies or not key.startswith(student):
                continue
            copy = average + key[len(student) :].replace(".", dot)
            if copy in copies and entries[copy].shape == entry.shape:
                found[key] = copy
        if len(found) == len(copies) == len(set(found.values())):
            return found, who
    return {}, ""


def is_dotless_counter(key: str) -> bool:
    """Whether a tensor counts the steps of an average without dots."""
    return key in _DOTLESS_COUNTERS


def strip_prefix(keys: Iterable[str]) -> tuple[str, dict[str, str]]:
    """What `DataParallel` and `torch.compile` put before all keys, and key -> key without it.

    >>> strip_prefix(["module.conv.weight", "module.conv.bias"])
    ('module.', {'module.conv.weight': 'conv.weight', 'module.conv.bias': 'conv.bias'})
    >>> strip_prefix(["module.weight", "head.weight"])[0]
    ''
    """
    keys = list(keys)
    prefix = ""
    for _ in range(MAX_PREFIXES if keys else 0):
        for following in PREFIXES:
            longer = prefix + following
            if all(key.startswith(longer) and len(key) > len(longer) for key in keys):
                prefix = longer
                break
        else:
            break
    return prefix, {key: key[len(prefix) :] for key in keys}


def holds_copy(average: Mapping[str, TensorEntry], other: Mapping[str, TensorEntry]) -> bool:
    """Whether `other` has about all tensors of an average, by name and shape: it is its student.

    What wrappers put before all keys, and a module that all keys lie in, make no difference.
    """
    if not average or len(other) < ALIKE * len(average):
        return False
    return any(
        sum(key in theirs and theirs[key] == shape for key, shape in mine.items())
        >= ALIKE * len(mine)
        for mine, theirs in zip(_spellings(average), _spellings(other), strict=True)
    )


def _spellings(entries: Mapping[str, TensorEntry]) -> tuple[dict[str, tuple[int, ...]], ...]:
    """Name -> shape, once below the wrappers' prefix and once below the module around it all."""
    dropped = counters(entries)
    _, names = strip_prefix(key for key in entries if key not in dropped)
    shapes = {name: entries[key].shape for key, name in names.items()}
    first, last = min(shapes)[:_MAX_NAME], max(shapes)[:_MAX_NAME]
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), 0)
    module = first.rfind(".", 0, same) + 1
    return shapes, {name[module:]: shape for name, shape in shapes.items()}
