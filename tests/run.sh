#!/usr/bin/env bash
# All checks: ruff, pyright, pytest (its arguments: tests/run.sh tests/unit -k launcher). Makes its own environment.
set -euo pipefail

. "$(dirname "${BASH_SOURCE[0]}")/../scripts/install.sh"

install_project "${LORABENCH_TEST_VENV:-$PROJECT/.venv-test}" test
cd "$PROJECT"
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
"$VENV_PYTHON" -m ruff check .
"$VENV_PYTHON" -m ruff format --check .
"$VENV_PYTHON" -m pyright --pythonpath "$VENV_PYTHON"
exec "$VENV_PYTHON" -m pytest "$@"
