# Sourced by launch.sh and tests/run.sh: makes a virtual environment with the versions of constraints.txt, once.
#
#   install_project VENV EXTRAS     EXTRAS as in `pip install lorabench[EXTRAS]`; sets VENV_PYTHON
#
# PYTHON              interpreter to build on (3.11 or newer); default: the first of python3, python3.13, ... that is
# LORABENCH_TORCH     requirement for torch; default torch==2.13.0
# LORABENCH_TORCH_INDEX   index that has that build, as in https://download.pytorch.org/whl/cu126

PROJECT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
DEFAULT_TORCH="torch==2.13.0"

say() { printf 'lorabench: %s\n' "$*" >&2; }

fail() {
    say "$*"
    exit 2
}

is_recent_python() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
    local candidate
    if [ -n "${PYTHON:-}" ]; then
        is_recent_python "$PYTHON" || fail "PYTHON=$PYTHON: expected an interpreter of Python 3.11 or newer"
        echo "$PYTHON"
        return
    fi
    for candidate in python3 python3.13 python3.12 python3.11 python3.14; do
        if is_recent_python "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    fail "no Python 3.11 or newer found (tried python3 and python3.11 to 3.14); install one or set PYTHON=/path/to/it"
}

create_venv() {
    local venv="$1" python
    VENV_PYTHON="$venv/bin/python"
    if "$VENV_PYTHON" -m pip --version >/dev/null 2>&1; then
        return
    fi
    # A folder without pyvenv.cfg is somebody's data: --clear would empty it.
    if [ -d "$venv" ] && [ ! -f "$venv/pyvenv.cfg" ] && [ -n "$(ls -A "$venv")" ]; then
        fail "$venv: exists and is no virtual environment; expected a new folder or one that is"
    fi
    python="$(find_python)"
    say "creating $venv with $("$python" --version)"
    "$python" -m venv --clear "$venv" || fail "$python cannot create $venv (on Debian and Ubuntu: apt install python3-venv)"
}

# What an installation depends on. The project's folder is part of it, since the installation is editable.
install_key() {
    {
        cat "$PROJECT/pyproject.toml" "$PROJECT/constraints.txt"
        printf '%s\n' "$PROJECT" "${LORABENCH_TORCH:-$DEFAULT_TORCH}" "${LORABENCH_TORCH_INDEX:-}"
    } | "$VENV_PYTHON" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())'
}

pip_install() {
    "$VENV_PYTHON" -m pip install --quiet --disable-pip-version-check "$@" || fail "pip install $* failed"
}

# torch first: it decides the CUDA version, and DeepSpeed looks at it while it is built.
install_torch() {
    local torch="${LORABENCH_TORCH:-$DEFAULT_TORCH}" pins="$1"
    say "installing $torch${LORABENCH_TORCH_INDEX:+ from $LORABENCH_TORCH_INDEX}"
    if [ -n "${LORABENCH_TORCH_INDEX:-}" ]; then
        # That index carries torch's dependencies in versions of its own; the next step brings them to the pinned ones.
        pip_install --index-url "$LORABENCH_TORCH_INDEX" "$torch"
    elif [ "$torch" = "$DEFAULT_TORCH" ]; then
        pip_install --constraint "$PROJECT/constraints.txt" "$torch"
    else
        pip_install "$torch"
    fi
    # Another torch than the default brings its own needs for setuptools, so only torch itself stays pinned then.
    {
        if [ "$torch" = "$DEFAULT_TORCH" ]; then
            grep -v '^torch==' "$PROJECT/constraints.txt"
        else
            grep -v -e '^torch==' -e '^setuptools==' "$PROJECT/constraints.txt"
        fi
        "$VENV_PYTHON" -c 'from importlib.metadata import version; print("torch==" + version("torch"))'
    } >"$pins"
}

install_deepspeed() {
    say "building DeepSpeed (without its compiled operators)"
    pip_install --constraint "$1" setuptools wheel ninja
    DS_BUILD_OPS=0 pip_install --constraint "$1" --no-build-isolation deepspeed
}

install_project() {
    local venv="$1" extras="$2" key stamp pins
    case "$venv" in
        /*) ;;
        *) venv="$PWD/$venv" ;;
    esac
    create_venv "$venv"
    key="$(install_key)"
    stamp="$venv/.lorabench-installed"
    pins="$venv/constraints.txt"
    case "$(cat "$stamp" 2>/dev/null)" in
        # An installation with more extras at the end serves as well.
        "$key $extras" | "$key $extras",*) return ;;
    esac
    # Without the stamp, an installation that stops half-way is done again.
    rm -f "$stamp"
    install_torch "$pins"
    case ",$extras," in
        *,deepspeed,* | *,test,*) install_deepspeed "$pins" ;;
    esac
    say "installing lorabench[$extras] into $venv"
    # By a plain path: otherwise a script beside the clone would find the clone's folder in place of the package.
    pip_install --constraint "$pins" --config-settings editable_mode=compat --editable "$PROJECT[$extras]"
    printf '%s %s\n' "$key" "$extras" >"$stamp"
}
