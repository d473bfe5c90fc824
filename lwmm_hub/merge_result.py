"""`MergeResult`: a merged folder, and what can be done with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lwmm_hub.display import result_html
from lwmm_hub.licenses import LicenseDecision
from lwmm_hub.planning import MergePlan

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, repr=False)
class MergeResult:
    """A merged folder: `load()` gives its model, `push_to_hub()` publishes it.

    It is taken wherever a model is named, to merge on or to evaluate.

    Attributes:
        folder: where it is, from the root: it stays right where the program goes elsewhere.
        plan: the plan as it ran.
        files: weight file -> sha256.
        seconds: wall time of the whole merge.
        bytes_written: of weights.
        license: the licence it must carry.
        output: the folder as it was asked for.
        commit_url: of the last `push_to_hub`; None before one.
    """

    folder: Path
    plan: MergePlan
    files: Mapping[str, str]
    seconds: float
    bytes_written: int
    license: LicenseDecision
    output: str
    commit_url: str | None = field(default=None, compare=False)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know."""
        return self.plan.warnings

    def load(self, **options: Any) -> PreTrainedModel:
        """The merged model, loaded by the transformers class that its config names.

        Args:
            **options: passed to `from_pretrained`.

        Raises:
            OutputError: the folder has no config, or keys are missing or left over.
        """
        from lwmm_hub.loading import load_model

        return load_model(self.folder, **options)

    def push_to_hub(
        self,
        repo: str,
        *,
        private: bool | None = None,
        create_pr: bool = False,
        accept_license: bool = False,
        name_private: bool = False,
        license: str | None = None,
        token: str | None = None,
        message: str | None = None,
        parents: Mapping[str, str] | None = None,
        warn: Callable[[str], None] | None = None,
    ) -> str:
        """Push the folder in one commit; returns the URL of the commit (or pull request).

        It is in `commit_url` afterwards, too. The arguments are those of `publish`.

        Raises:
            LicenseRefusedError: a licence rule refuses a public target.
            PublishError: the Hub did not take it, or a private parent would be named in public.
        """
        from lwmm_hub.publishing import publish

        url = publish(
            self.folder,
            repo,
            private=private,
            create_pr=create_pr,
            accept_license=accept_license,
            name_private=name_private,
            license=license,
            token=token,
            message=message,
            parents=parents,
            warn=warn,
        )
        object.__setattr__(self, "commit_url", url)  # frozen: nobody else sets anything
        return url

    def to_dict(self) -> dict[str, Any]:
        """What `lwmm-hub merge --json` prints: `merged` and `kept` are as long as the plan's lists.

        `merged_in_part` says how many of those that are kept are in both, where any are.
        """
        counts = self.plan.counts
        return {
            "output": self.output,
            "merged": counts.merged,
            "kept": len(self.plan.kept),
            **({"merged_in_part": counts.in_part} if counts.in_part else {}),
            "seconds": round(self.seconds, 3),
            "bytes_written": self.bytes_written,
            "sha256": dict(self.files),
            "commit_url": self.commit_url,
            "warnings": list(self.plan.warnings),
        }

    def __fspath__(self) -> str:  # wherever a model is named by a path: to merge on, to evaluate
        return str(self.folder)

    def __repr__(self) -> str:  # of all fields it would fill a notebook
        return f"<MergeResult {self}>"

    def __str__(self) -> str:
        return f"{self.output}: {self.plan.counts}, {self.seconds:.1f} s"

    def _repr_html_(self) -> str:
        return result_html(str(self), self.license.license or "not stated", self.warnings)
