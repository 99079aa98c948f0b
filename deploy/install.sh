#!/bin/sh
# What the image's build does, as shell, so that it also runs without Docker:
#   sh deploy/install.sh /opt/rxtone
# Call it from the root of the checkout; the folder becomes a virtual environment with rxtone in it.
set -eu
target=${1:?name the folder of the virtual environment}
extras=${2:-serve,export}
python3 -m venv "$target"
"$target/bin/pip" install --no-cache-dir --constraint constraints.txt torch
"$target/bin/pip" install --no-cache-dir --constraint constraints.txt ".[$extras]"
"$target/bin/rxtone" --help > /dev/null
