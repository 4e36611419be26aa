#!/usr/bin/env bash
# Checks and measures narrows on the GPU of this machine. Writes OUT/report.md, OUT/results.json, logs.tar.gz
# and, where they were made, roofline.svg and a trace.
#
# usage: ./run.sh [OUT]              default ./out
#
#   NARROWS_BUNDLE_GB=40             the model that is streamed has at most so many GB
#   NARROWS_BUNDLE_DIR=./models      where it is written (and deleted again): a folder on a real, fast disk
#   NARROWS_BUNDLE_SECONDS=580       what does not end by then is stopped or left out, and the report says so
#   NARROWS_BUNDLE_ONLY=tests,bench  only these steps of: tests goldens bits sanitizer memory pcie bench torch stream wide
#   NARROWS_BUNDLE_SMALL=1           shows that everything runs, in little time; nothing of it is a measurement
#
# Exits with 0 if all is well, 1 if something is not, 6 if there is no GPU to run on.
set -euo pipefail
if ! command -v python3 >/dev/null; then
    echo "run.sh: python3 is missing (3.8 or newer, no packages)" >&2
    exit 1
fi
exec python3 "$(dirname "$0")/checks.py" "$@"
