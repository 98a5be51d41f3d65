# What train_base.sh, train.sh and test.sh share (POSIX sh). They source it and call
#   launch SCRIPT CONFIG_SUFFIX TAKES_SHOT "$@"

usage() {
    echo "error: $1" >&2
    echo "usage: sh $name <split0..split3> <data set> <gpus, 0 = CPU> [backbone] [shot]" \
        "[arguments of $script]" >&2
    exit 2
}

launch() {
    script=$1 suffix=$2 takes_shot=$3
    shift 3
    name=${script%.py}.sh

    [ $# -ge 3 ] || usage "split, data set and number of GPUs are needed"
    split=$1 data=$2 gpus=$3
    shift 3
    case $split in
    split[0-9] | split[0-9][0-9]) ;;
    *) usage "'$split' is not a split such as split0" ;;
    esac
    case $data in
    '' | [!A-Za-z0-9_]* | *[!A-Za-z0-9_.+-]*) usage "'$data' is not the name of a data set" ;;
    esac
    case $gpus in
    '' | *[!0-9]* | ????*) usage "'$gpus' is not a number of GPUs" ;;
    esac

    backbone=resnet50
    [ "$data" = demo ] && backbone=resnet18
    case ${1:-} in
    '' | -*) ;;
    *)
        backbone=$1
        shift
        ;;
    esac
    shot=
    case ${1:-} in
    '' | -*) ;;
    *[!0-9]* | 0*) usage "'$1' is not a number of shots" ;;
    *)
        shot=$1
        shift
        ;;
    esac

    config=config/$data/${data}_${split}_$backbone$suffix.yaml
    if [ ! -f "$config" ]; then
        echo "error: there is no $config" >&2
        exit 2
    fi
    # The base learner has no shot, so that the three scripts can be given the same arguments.
    if [ "$takes_shot" = no ]; then
        shot=
    fi
    # --opts adds up, later ones win: what the user adds overrides the shot here.
    if [ -n "$shot" ]; then
        set -- --opts shot "$shot" "$@"
    fi

    # A python that has no torch gives way to the environment of `make install`.
    python=${PYTHON:-python}
    probe='import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)'
    "$python" -c "$probe" >/dev/null 2>&1 || python=.venv/bin/python
    if ! command -v "$python" >/dev/null 2>&1; then
        echo "error: no python with torch found: run 'make install' first, or set PYTHON" >&2
        exit 2
    fi

    # One process is started directly and keeps its exit status; several are torchrun's.
    case $gpus in
    0) export CUDA_VISIBLE_DEVICES= ;;
    1) ;;
    *)
        if [ -z "${OMP_NUM_THREADS:-}" ]; then
            cores=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
            OMP_NUM_THREADS=$((cores / gpus > 1 ? cores / gpus : 1))
            export OMP_NUM_THREADS
        fi
        if [ "${NNODES:-1}" = 1 ]; then
            set -- --standalone --nproc_per_node "$gpus" --max-restarts "${MAX_RESTARTS:-0}" \
                "$script" --config "$config" "$@"
        else
            [ -n "${RDZV_ENDPOINT:-}" ] || usage "NNODES $NNODES needs RDZV_ENDPOINT, HOST:PORT of one"
            set -- --nnodes "$NNODES" --nproc_per_node "$gpus" --rdzv_backend c10d \
                --rdzv_endpoint "$RDZV_ENDPOINT" --rdzv_id "${RDZV_ID:-$data-$split-$backbone$shot}" \
                --max-restarts "${MAX_RESTARTS:-0}" "$script" --config "$config" "$@"
        fi
        set -- -m torch.distributed.run "$@"
        ;;
    esac
    [ "$gpus" -gt 1 ] || set -- "$script" --config "$config" "$@"

    logs=${LOG_DIR:-exp/logs}
    log=$logs/${script%.py}_${data}_${split}_$backbone${shot:+_${shot}shot}.log
    mkdir -p "$logs" && pipe=$(mktemp -d) && mkfifo "$pipe/log" || exit 2
    echo "$(date '+%Y-%m-%d %H:%M:%S') $*" >>"$log" || exit 2

    # In the background, so that a signal to this shell can be passed on while it waits. tee must
    # outlive the signal: what the processes say while they save is in the log too.
    (
        trap '' TERM INT HUP
        exec tee -a "$log" <"$pipe/log"
    ) &
    tee=$!
    "$python" "$@" >"$pipe/log" 2>&1 &
    pid=$!
    trap 'signalled=yes; kill -TERM "$pid" 2>/dev/null' TERM INT HUP

    # A signal ends `wait` early, with a status that is not the process's own: wait again. 127 says
    # that there is nothing left to wait for.
    signalled=yes
    status=127
    while [ -n "$signalled" ]; do
        signalled=
        wait "$pid"
        code=$?
        [ "$code" = 127 ] || status=$code
    done
    wait "$tee"
    rm -r "$pipe"
    exit "$status"
}
