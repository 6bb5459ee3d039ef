#!/usr/bin/env bash
# One run on two nodes of a Slurm cluster, or more. From the project's folder, once ./launch.sh has installed it:
#
#   sbatch scripts/slurm_two_nodes.sh --model llama3-8b --task disaster-tweets
#   sbatch --nodes 4 --gpus-per-node 8 scripts/slurm_two_nodes.sh --config_file zero3.yaml --model llama2-7b
#
# All flags are those of ./launch.sh. OUTPUT_DIR names the folder of the run, on a disk that all nodes share (default
# runs/slurm-JOB); LORABENCH_VENV another environment (default .venv).
#
# Two minutes before the time limit Slurm sends SIGUSR1. It becomes SIGTERM for the training processes alone, which
# finish their step and leave a checkpoint: a launcher would kill them after 30 s, or not pass it on at all. The job
# then goes back into the queue, and goes on with --resume. A job that is pre-empted gets SIGTERM, and Slurm itself
# puts it back.
#
#SBATCH --job-name=lorabench
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=2
#SBATCH --cpus-per-task=16
#SBATCH --time=08:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=lorabench-%j.log
set -euo pipefail

# The job's script is a copy elsewhere, so the project is found by where sbatch was called.
PROJECT="${SLURM_SUBMIT_DIR:?expected Slurm: sbatch scripts/slurm_two_nodes.sh FLAGS, from the folder of the project}"
VENV_PYTHON="${LORABENCH_VENV:-$PROJECT/.venv}/bin/python"

# On each node: the launcher, and between it and Slurm somebody who knows whom a signal is for.
run_on_node() {
    local launcher code=0
    # Slurm sends USR1 to every process, and one that neither ignores nor handles it dies.
    (
        trap '' USR1
        exec "$VENV_PYTHON" -m lorabench.launch --machine_rank "$SLURM_NODEID" "$@"
    ) &
    launcher=$!
    # The training processes are the launcher's children.
    trap 'pkill -TERM -P "$launcher" || true' USR1 TERM
    # A trap ends `wait` early.
    while kill -0 "$launcher" 2>/dev/null; do
        wait "$launcher" && code=0 || code=$?
    done
    return "$code"
}

run_status() {
    "$VENV_PYTHON" -c 'import json, sys; print(json.load(open(sys.argv[1]))["status"])' "$OUTPUT_DIR/run.json"
}

main() {
    local hosts resume=() code=0
    case " $* " in
        *" --output-dir"* | *" --output_dir"*)
            echo "slurm_two_nodes.sh: --output-dir: expected OUTPUT_DIR=FOLDER before sbatch instead" >&2
            exit 2
            ;;
    esac
    export OUTPUT_DIR="${OUTPUT_DIR:-runs/slurm-$SLURM_JOB_ID}"
    if [ -f "$OUTPUT_DIR/run.json" ]; then
        if [ "$(run_status)" = completed ]; then
            echo "slurm_two_nodes.sh: the run in $OUTPUT_DIR is complete"
            return 0
        fi
        resume=(--resume)
    fi
    mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
    # --wait: when one node has ended, the others have a minute. They may be waiting for it.
    srun --kill-on-bad-exit=0 --wait=60 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
        bash "$PROJECT/scripts/slurm_two_nodes.sh" on-node \
        --config_file two_nodes_ddp.yaml \
        --num_machines "${#hosts[@]}" \
        --num_processes "$((${#hosts[@]} * ${SLURM_GPUS_ON_NODE:-1}))" \
        --main_process_ip "${hosts[0]}" \
        --main_process_port "$((20000 + SLURM_JOB_ID % 20000))" \
        "$@" --output-dir "$OUTPUT_DIR" "${resume[@]}" || code=$?
    if [ "$code" -ne 0 ] && [ -f "$OUTPUT_DIR/run.json" ] && [ "$(run_status)" = interrupted ]; then
        echo "slurm_two_nodes.sh: interrupted, and back into the queue"
        scontrol requeue "$SLURM_JOB_ID"
    fi
    return "$code"
}

cd "$PROJECT"
if [ "${1:-}" = on-node ]; then
    shift
    run_on_node "$@"
else
    main "$@"
fi
