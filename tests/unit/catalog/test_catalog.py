"""The catalog is the lowest wing: light to import, and built on nothing but the package's errors."""

import subprocess
import sys
from pathlib import Path

import pytest

import lorabench.catalog

TABLES = sorted(path.stem for path in Path(lorabench.catalog.__path__[0]).glob("[a-z]*.py"))
HEAVY = ("torch", "sklearn", "transformers", "accelerate", "wandb", "tensorboard", "datasets")


@pytest.mark.parametrize("table", TABLES)
def test_a_table_loads_without_what_its_entries_need(table: str) -> None:
    code = (
        f"import sys, lorabench.catalog.{table}\n"
        f"print([name for name in {HEAVY} if name in sys.modules])\n"
        "print([n for n in sys.modules if n.startswith('lorabench.') and not n.startswith('lorabench.catalog')])"
    )
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    heavy, own = result.stdout.splitlines()
    assert heavy == "[]" and own in ("[]", "['lorabench.errors']")
