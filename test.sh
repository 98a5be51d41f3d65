#!/bin/sh
# Evaluation:
#   sh test.sh <split0..split3> <pascal|coco|...> <gpus, 0 = CPU> [backbone] [shot] [arguments]
# e.g. sh test.sh split0 pascal 2 resnet50 5 --opts workers 8
# The backbone also picks the method: resnet50 is HDMNet, resnet50_hsnet is HSNet.
# The output is kept under exp/logs (LOG_DIR); the exit status is that of test.py.
cd "$(dirname "$0")" || exit 2
. ./util/runtime/launch.sh
launch test.py "" yes "$@"
