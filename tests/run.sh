#!/usr/bin/env bash
# All checks, in an environment that it makes itself: ruff, pyright, the order of imports, then pytest.
#
#   tests/run.sh                          every test, on a worker for each core, four at most
#   tests/run.sh ARGUMENTS...             pytest with these instead, as in tests/run.sh tests/unit -k launcher
#
# LORABENCH_TEST_VENV     the environment; default .venv-test
# LORABENCH_DATA          folder with disaster_tweets/ and reclor/; tests on real data are skipped without it
set -euo pipefail

. "$(dirname "${BASH_SOURCE[0]}")/../scripts/install.sh"

install_project "${LORABENCH_TEST_VENV:-$PROJECT/.venv-test}" test
cd "$PROJECT"
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
# Launches are processes by the hundred, and compiling the package anew in each takes a quarter of their start.
unset PYTHONDONTWRITEBYTECODE
"$VENV_PYTHON" -m ruff check .
"$VENV_PYTHON" -m ruff format --check .
"$VENV_PYTHON" -m pyright --pythonpath "$VENV_PYTHON"
"$(dirname "$VENV_PYTHON")/lint-imports" --no-cache --no-logo
if [ "$#" -eq 0 ]; then
    # Whole modules, each on one worker with its fixtures, in the order that tests/conftest.py gives.
    set -- -n auto --dist loadscope --no-loadscope-reorder
fi
exec "$VENV_PYTHON" -m pytest "$@"
