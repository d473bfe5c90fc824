"""What beside its weights a model needs to be shown images: an image processor, a tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lwmm_hub.errors import EvaluationError

if TYPE_CHECKING:
    from torch import Tensor


def load_processor(folder: Path, name: str) -> Any:
    """The image processor that a folder describes, by its PIL implementation.

    The torchvision one resizes otherwise and moves scores in their third digit.

    Raises:
        EvaluationError: there is none, or transformers cannot load it.
    """
    import transformers

    if not any((folder / f"{n}_config.json").is_file() for n in ("preprocessor", "processor")):
        raise EvaluationError(
            f"{name} has no image processor, so nobody knows how it wants its images. Put the "
            "preprocessor_config.json of the model it was made from beside its config.json."
        )
    loader: Any = transformers.AutoImageProcessor
    try:
        return loader.from_pretrained(folder, backend="pil", local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise EvaluationError(
            f"{name} has no image processor that transformers can load ({told(error)}). Put the "
            "preprocessor_config.json of the model it was made from beside its config.json."
        ) from error


def load_tokens(folder: Path, name: str, length: int) -> Callable[[str], Tensor]:
    """How OneFormer is told its task: the sentence's tokens, 0 behind its end.

    Raises:
        EvaluationError: there is no tokenizer, or one without words.
    """
    import transformers

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise EvaluationError(
            f"{name} has no tokenizer that transformers can load ({told(error)}): it is told its "
            "task by a sentence. Put the tokenizer files of the original beside its config.json."
        ) from error

    def tokens(task: str) -> Tensor:
        text = tokenizer(
            f"the task is {task}",
            padding="max_length",
            max_length=length,
            truncation=True,
            return_tensors="pt",
        )
        masked: Tensor = text["input_ids"] * text["attention_mask"]
        return masked

    if bool((tokens("semantic") == tokens("panoptic")).all()):  # one without its vocabulary
        raise EvaluationError(
            f"{name} has a tokenizer without words: its tasks would all be one. Put the tokenizer "
            "files of the original beside its config.json."
        )
    return tokens


def told(error: BaseException) -> str:
    """The first line of another library's message, as a sentence, cut to a readable length."""
    text = " ".join(str(error).split())[:200]
    return text if text.endswith((".", "!", "?")) else f"{text}."
