"""Run transformers quietly, offline and for a limited time; its errors become ours."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import re
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from lwmm_hub.errors import LayerOrderError

MAX_SECONDS = 90.0


class OutOfTime(BaseException):
    """The model did not come to an end; no `except Exception` on the way may swallow this."""


class _NoHub:
    """Stands in for the Hub's client while a config is parsed: nothing exists there."""

    def repo_exists(self, *_: Any, **__: Any) -> bool:
        return False


_ONE_AT_A_TIME = threading.RLock()


@contextlib.contextmanager
def guarded(config: Mapping[str, Any]) -> Iterator[None]:
    """Run transformers quietly, offline, for a limited time; its errors become ours."""
    architectures = config.get("architectures")
    what = str(architectures[0])[:80] if isinstance(architectures, list) and architectures else "?"
    with _ONE_AT_A_TIME, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch
        import transformers

        try:
            with (
                silence(),
                torch.random.fork_rng(devices=[]),
                no_hub(),
                _no_caches(),
                _time_limit(MAX_SECONDS),
            ):
                yield
        except LayerOrderError:
            raise
        except OutOfTime:
            raise LayerOrderError(
                f"{what} as this config describes it does not run within {MAX_SECONDS:g} s or "
                "within sane bounds. Check that the config belongs to these weights."
            ) from None
        except ImportError as error:
            named = re.search(r"requires the (\w+) library", str(error))
            package = named.group(1) if named else error.name or "a package"
            raise LayerOrderError(
                f"{what} as this config describes it needs {package}, which is not installed. "
                f"Run `pip install {package}`, or use a model built from transformers' own parts."
            ) from error
        except Exception as error:  # whatever a class makes of a foreign config
            raise LayerOrderError(
                f"{what} of transformers {transformers.__version__} cannot be built and run from "
                f"this config: {type(error).__name__}: {_one_line(error)} Correct config.json, or "
                "use a model whose family has a table here."
            ) from error


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keep transformers from logging and drawing bars; what is wrong, we say in words of ours."""
    import huggingface_hub
    import transformers

    log: Any = transformers.utils.logging
    hub: Any = huggingface_hub.utils  # whose bars transformers turns off and on with its own
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    hub_bars = not hub.are_progress_bars_disabled()
    log.set_verbosity(logging.CRITICAL)
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # HF_HUB_DISABLE_PROGRESS_BARS goes before all of this
            if bars:
                log.enable_progress_bar()
            if hub_bars:
                hub.enable_progress_bars()
            elif bars:
                hub.disable_progress_bars()


def _one_line(error: Exception, width: int = 240) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= width else f"{text[: width - 3]}..."


@contextlib.contextmanager
def no_hub() -> Iterator[None]:
    """Keep transformers from asking the Hub whether a backbone's name is a repository."""
    try:
        from transformers import backbone_utils
    except ImportError:
        yield
        return
    if not hasattr(backbone_utils, "hf_api"):
        yield
        return
    original = backbone_utils.hf_api
    backbone_utils.hf_api = lambda *_, **__: _NoHub()
    try:
        yield
    finally:
        backbone_utils.hf_api = original


@contextlib.contextmanager
def _no_caches() -> Iterator[None]:
    """Keep tensors of a traced pass out of transformers' caches: real models would find them there.

    BEiT's index of relative positions is cached by window size alone, not by device.
    """
    from transformers import pytorch_utils

    module: Any = pytorch_utils
    original = getattr(module, "is_torchdynamo_compiling", None)
    if original is None:
        yield
        return
    module.is_torchdynamo_compiling = lambda: True  # what its caches ask before they are used
    try:
        yield
    finally:
        module.is_torchdynamo_compiling = original


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise `OutOfTime` in this thread when the body runs longer (CPython only)."""
    thread = ctypes.c_ulong(threading.get_ident())
    lock, done, fired = threading.Lock(), False, False

    def stop() -> None:
        nonlocal fired
        with lock:
            if not done:
                fired = True
                ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(OutOfTime))

    timer = threading.Timer(seconds, stop)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        with lock:
            done = True
        # One that was not delivered yet is taken here. It must not be revoked: CPython 3.11 would
        # think for ever that one is pending, and hang in the first function that is traced.
        with contextlib.suppress(OutOfTime):
            for _ in range(100 if fired else 0):
                time.sleep(0)
