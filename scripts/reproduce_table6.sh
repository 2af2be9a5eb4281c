#!/usr/bin/env bash
# Table 6, detection on MS-COCO with KD and the controls: 14 trainings, each over 3 seeds; DATASET.ROOT holds
# COCO 2017.
# Options: see reproduce.sh. --smoke uses the real images of data/coco_tiny (DATASET.ROOT/coco_tiny) if they are there, and
# drawn digits otherwise.
exec "$(dirname "$0")/reproduce.sh" 6 "$@"
