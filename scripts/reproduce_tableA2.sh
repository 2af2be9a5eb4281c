#!/usr/bin/env bash
# Table A2, detection on MS-COCO with DKD and the controls: 6 trainings, each over 3 seeds; DATASET.ROOT holds
# COCO 2017.
# Options: see reproduce.sh. --smoke uses the real images of data/coco_tiny (DATASET.ROOT/coco_tiny) if they are there, and
# drawn digits otherwise.
exec "$(dirname "$0")/reproduce.sh" A2 "$@"
