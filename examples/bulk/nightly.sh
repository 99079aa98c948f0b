#!/bin/sh
# Label every table of an inbox that has no result yet: NAME.csv -> OUTBOX/NAME.parquet.
#
#   sh examples/bulk/nightly.sh RUN INBOX OUTBOX [options of `rxtone predict`, such as --min-confidence 0.7]
#
# Safe to repeat: finished tables are skipped, and one that was interrupted, even killed, goes on where it was.
# Rows that cannot be read are named in NAME.parquet.rejected.jsonl. A table that fails does not stop the others;
# the exit code is that of the last failure.
set -eu
run=${1:?name the run}
inbox=${2:?name the folder of new tables}
outbox=${3:?name the folder of results}
shift 3
mkdir -p "$outbox"
code=0
for table in "$inbox"/*.csv; do
    [ -e "$table" ] || continue
    result=$outbox/$(basename "$table" .csv).parquet
    [ -e "$result" ] || rxtone predict "$run" "$table" -o "$result" "$@" || code=$?
done
exit "$code"
