"""Records of runs that only look like runs; imports nothing that takes long, for programs that are started often."""

import json
from pathlib import Path
from typing import Any


def write(folder: Path, record: dict[str, Any]) -> None:
    """`run.json`, whole."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / ".run"
    temporary.write_text(json.dumps({"schema_version": 1, **record}), encoding="utf-8")
    temporary.replace(folder / "run.json")
