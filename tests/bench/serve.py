"""The test Hub as a process: prints its endpoint and environment, then bytes sent per line read."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hub import TestHub


def main(models: str) -> None:
    with tempfile.TemporaryDirectory() as scratch, TestHub.start(Path(scratch)) as hub:
        names = []
        for folder in sorted(Path(models).iterdir()):
            if folder.name.isdigit():
                files = {path.name: path for path in folder.iterdir()}
                hub.create_repo(f"team/model-{folder.name}", files)
                names.append(f"team/model-{folder.name}")
        ready = {"models": names, "environment": hub.environment(Path(scratch) / "home")}
        sys.stdout.write(json.dumps(ready) + "\n")
        sys.stdout.flush()
        for _ in sys.stdin:
            sys.stdout.write(f"{sum(record.sent for record in hub.requests)}\n")
            sys.stdout.flush()
            hub.requests.clear()


if __name__ == "__main__":
    main(sys.argv[1])
