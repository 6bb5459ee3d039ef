#!/usr/bin/env bash
# Mutation testing of one wing, in an environment that it makes itself: tests/mutants.sh WING [--minutes N]
# [--workers N] [--sample N [--sample-seed S]]
#
# LORABENCH_MUTANTS_VENV     the environment; default .venv-mutants
set -euo pipefail

. "$(dirname "${BASH_SOURCE[0]}")/../scripts/install.sh"

install_project "${LORABENCH_MUTANTS_VENV:-$PROJECT/.venv-mutants}" mutants
exec "$VENV_PYTHON" "$PROJECT/tests/helpers/mutation.py" "$@"
