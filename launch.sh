#!/usr/bin/env bash
# Installs lorabench into .venv on the first start, chooses how to use this machine's GPUs, and runs:
#
#   ./launch.sh                                               a small model on the embedded sample
#   ./launch.sh --model llama3-8b --task disaster-tweets      any flags of the training command
#   ./launch.sh --config_file accelerate_configs/zero3.yaml --model llama3-8b
#   ./launch.sh sweep sweeps/tweets.yaml --model llama3-8b    a search over settings: lorabench sweep
#
# LORABENCH_VENV names another environment; PYTHON, LORABENCH_TORCH and LORABENCH_TORCH_INDEX: see scripts/install.sh.
set -euo pipefail

. "$(dirname "${BASH_SOURCE[0]}")/scripts/install.sh"

# DeepSpeed takes a minute to build, so it is installed only where a run may come to need it.
wants_deepspeed() {
    local argument
    for argument in "$@"; do
        case "$argument" in
            *zero[0-9]*.yaml | *deepspeed*.yaml | --num[_-]machines*) return 0 ;;
        esac
    done
    [ "$(nvidia-smi --list-gpus 2>/dev/null | wc -l)" -gt 1 ]
}

# The lines `name: value` of the file after --config, as `--name value`.
config_words() {
    local before="" argument file=""
    for argument in "$@"; do
        [ "$before" = --config ] && file="$argument"
        case "$argument" in --config=*) file="${argument#--config=}" ;; esac
        before="$argument"
    done
    file="${file/#\~\//$HOME/}"
    [ -f "$file" ] || return 0
    sed -n 's/^\([a-z_-]*\): *\([^ #]*\).*$/--\1 \2/p' "$file" | tr -d "\"'" | tr '\n' ' '
}

if [ $# -eq 0 ]; then
    set -- --model minilm --task sample
fi
extras=demo
if wants_deepspeed "$@"; then
    extras=demo,deepspeed
fi
# What a configuration file asks for counts, too, unless a flag says otherwise: its lines as flags.
from_file=" $(config_words "$@") "
case " $* " in
    *" --quantize none "* | *" --quantize=none "*) ;;
    *" --quantize nf4 "* | *" --quantize=nf4 "* | *" --task reclor "* | *" --task=reclor "*) extras="$extras,quantize" ;;
    *)
        case "$from_file" in
            *" --quantize nf4 "*) extras="$extras,quantize" ;;
            *" --quantize none "*) ;;
            *" --task reclor "*) extras="$extras,quantize" ;;
        esac
        ;;
esac
case " $* $from_file" in
    *" --track trackio "* | *" --track=trackio "*) extras="$extras,trackio" ;;
    *" --track wandb "* | *" --track=wandb "*) extras="$extras,wandb" ;;
    *" --track tensorboard "* | *" --track=tensorboard "*) extras="$extras,tensorboard" ;;
esac
program=lorabench.launch
if [ "$1" = sweep ]; then
    program=lorabench
    extras="$extras,sweep"
    case " $* " in
        *" --track wandb "* | *" --track=wandb "*) ;;
        *" --backend wandb "* | *" --backend=wandb "*) extras="$extras,wandb" ;;
    esac
fi
install_project "${LORABENCH_VENV:-$PROJECT/.venv}" "$extras"
exec "$VENV_PYTHON" -m "$program" "$@"
