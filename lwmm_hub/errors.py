"""Every error that lwmm_hub raises on purpose, and the exit code it becomes on the command line.

LwmmError                     1   base: one line that says what, which, and what to do now
├── UsageError                2   options that contradict each other or are out of range
├── ModelReferenceError       1   the text does not name a model
├── ResolveError              1   the model cannot be found or reached
├── CheckpointError           1   the model is there, its weights cannot be read
│   └── UnsafePickleError     1   the file asks for code to run
├── RecipeError               1   a recipe or saved plan is not valid
├── UnrelatedModelsError      4   the models share nothing, or nothing that is related
├── MergeError                1   the weights cannot be merged (NaN, overflow)
├── OutputError               1   the folder cannot be written
├── EvaluationError           1   a model or data set cannot be scored as asked
│   └── EvaluationUsageError  2   an option of that is out of range; a UsageError, too
├── LayerOrderError           1   no depth order can be derived for an architecture
├── CardError                 1   a model card breaks a rule of the Hub
├── LicenseRefusedError       3   a licence rule refuses to publish
├── PublishError              1   the Hub did not take the folder
└── VerificationError         5   a rerun gave other weights

Messages name the options of the command line; what those are called in Python stands behind them.
"""

from __future__ import annotations

import re

_ALIKE = (
    "accept_license", "allow_nonfinite", "allow_unrelated", "batch_norm", "batch_size", "config",
    "create_pr", "device", "dtype", "flip", "image_column", "label_column", "license", "limit",
    "map_labels", "match", "max_shard_size", "name_private", "overwrite", "private", "revision",
    "schedule", "scope", "split", "streaming", "task", "to", "weights", "window",
)  # fmt: skip
PYTHON = {f"--{name.replace('_', '-')}": name for name in _ALIKE} | {
    "-o": "output",
    "--check-weights": "check_weights",
    "--label-map": "map_labels",
    "--labels": "label_space",
    "--model-labels": "labels",
    "--parent": "parents",
    "--recipe": "lw.merge_recipe",
    "--weights drift": "lw.fitting.drift_layer_weights",
    "--weights fit": "lw.fit_layer_weights",
}
"""Option in messages -> argument or function; of what only the command line has, none."""

_COMMAND = re.compile(r"'(?:lwmm-hub|hf) [^']*'")  # to be typed as it is
_OPTION = re.compile(r"(?<![\w-])(?:--weights (?:drift|fit)\b|--?[a-z]+(?:-[a-z]+)*)")
_TOLD = re.compile(r" \(In Python: [\w., ]+\.\)")


def in_python(text: str) -> str:
    """A message, and behind it what the options in it are called in Python.

    >>> in_python("out exists already. Pass --overwrite, or choose another folder with -o.")
    'out exists already. Pass --overwrite, or choose another folder with -o. \
(In Python: overwrite, output.)'
    """
    options = _OPTION.findall(_COMMAND.sub("", text))
    names = dict.fromkeys(PYTHON[option] for option in options if option in PYTHON)
    return f"{text} (In Python: {', '.join(names)}.)" if names else text


class LwmmError(Exception):
    """Base of all errors that lwmm_hub raises on purpose."""

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        """`message`: perhaps with that of another error in it, which is told for Python already."""
        super().__init__(_TOLD.sub("", message))

    @property
    def text(self) -> str:
        """The message as the command line, a card and a report say it."""
        return str(self.args[0])

    def __str__(self) -> str:
        return in_python(self.text)


class UsageError(LwmmError, ValueError):
    """Options that contradict each other or are out of range."""

    exit_code = 2

    def __init__(self, message: str, about: str | None = None) -> None:
        """`about`: the option that is wrong, where a recipe may hold it."""
        super().__init__(message)
        self.about = about


class ModelReferenceError(LwmmError, ValueError):
    """The text names neither a Hub repository nor a local file or folder."""


class ResolveError(LwmmError):
    """The repository, revision or file cannot be found or reached."""


class CheckpointError(LwmmError):
    """The model was found, but its weights cannot be read."""


class UnsafePickleError(CheckpointError):
    """A pickle holds something other than tensors and plain containers; nothing was executed."""


class RecipeError(LwmmError, ValueError):
    """A recipe or a saved plan has an unknown field, a wrong type or a wrong value."""


class UnrelatedModelsError(LwmmError):
    """The models share no backbone parameter, or the shared ones are unrelated."""

    exit_code = 4


class MergeError(LwmmError):
    """The weights cannot be merged as asked."""


class OutputError(LwmmError):
    """The output folder cannot be written."""


class EvaluationError(LwmmError, ValueError):
    """A model, a data set or a pair of them cannot be scored as asked."""


class EvaluationUsageError(EvaluationError, UsageError):
    """An option of an evaluation is out of range: wrong usage, whatever the model and the data."""


class LayerOrderError(LwmmError):
    """The depth order of an architecture cannot be derived from its class."""


class CardError(LwmmError, ValueError):
    """A model card breaks a rule of the Hub or of ours."""


class LicenseRefusedError(LwmmError):
    """A licence rule refuses to publish this merge."""

    exit_code = 3


class PublishError(LwmmError):
    """The Hub did not take the folder; it is kept on disk."""


class VerificationError(LwmmError):
    """Merging again from the recipe gave other weights."""

    exit_code = 5
