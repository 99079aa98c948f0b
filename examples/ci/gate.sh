#!/bin/sh
# A quality gate: train a recipe, judge it on a table that is kept apart, exit 4 if macro-F1 is below the floor.
#
#   sh examples/ci/gate.sh RECIPE TABLE FLOOR [--set GROUP.KEY=VALUE ...]
#
# The figures lie in $OUT/gate.json whether the gate holds or not. Other exit codes mean that something else went
# wrong: 1 runtime, 2 recipe or usage, 3 data. Repeated on the same $OUT, it goes on where it was.
# Keep the table large: on 20 rows one answer moves macro-F1 by 0.05. `macro_f1_ci` in gate.json says how sure it is.
set -eu
recipe=${1:?name the recipe}
table=${2:?name the labelled table}
floor=${3:?name the least macro-F1}
shift 3
out=${OUT:-runs/gate}

rxtone train "$recipe" --out "$out" --resume "$@"
rxtone evaluate "$out" "$table" --json --min-macro-f1 "$floor" > "$out/gate.json"
