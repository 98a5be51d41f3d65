#!/bin/sh
# Stage 1, the base learner:
#   sh train_base.sh <split0..split3> <pascal|coco|...> <gpus, 0 = CPU> [backbone] [shot] [arguments]
# e.g. sh train_base.sh split0 pascal 2 resnet50 --opts workers 8
# The output is kept under exp/logs (LOG_DIR); the exit status is that of train_base.py.
cd "$(dirname "$0")" || exit 2
. ./util/runtime/launch.sh
launch train_base.py "_base" no "$@"
