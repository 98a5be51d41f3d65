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

    python=${PYTHON:-python}
    if ! command -v "$python" >/dev/null 2>&1; then
        python=.venv/bin/python
    fi
    if ! command -v "$python" >/dev/null 2>&1; then
        echo "error: no python found: set PYTHON, or run 'make install' first" >&2
        exit 2
    fi

    logs=${LOG_DIR:-exp/logs}
    log=$logs/${script%.py}_${data}_${split}_$backbone${shot:+_${shot}shot}.log
    mkdir -p "$logs" && pipe=$(mktemp -d) && mkfifo "$pipe/log" || exit 2
    echo "$(date '+%Y-%m-%d %H:%M:%S') $script --config $config $*" >>"$log" || exit 2

    # In the background, so that a signal to this shell can be passed on while it waits. tee must
    # outlive the signal: what the processes say while they save is in the log too.
    (
        trap '' TERM INT HUP
        exec tee -a "$log" <"$pipe/log"
    ) &
    tee=$!
    "$python" -m util.launch "$gpus" "$script" --config "$config" "$@" >"$pipe/log" 2>&1 &
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
