#!/bin/sh
# Makes files of 4 KiB in one directory of a mount, and says what that cost.
#
#   cargo xtask bench create
#
# FILES  how many; 10000, if nothing is said
#
# Fails if a file costs 0.05 requests to the server or more: names are made in the mount's memory,
# and what is sent is for many of them.

set -eu

FILES=${FILES:-10000}

beside=$(mktemp -d -p "$([ -d /dev/shm ] && echo /dev/shm || echo /tmp)")
trap 'rm -rf "$beside"' EXIT

sent() {
    getfattr --absolute-names -n outrider.counters --only-values "$MNT" |
        awk '/^sent[.]/ { sum += $2 } END { print sum }'
}

# Nothing but what the shell does itself; nanoseconds.
make() {
    begun=$(date +%s%N)
    number=0
    while [ "$number" -lt "$FILES" ]; do
        printf %4096s >"$1/$number"
        number=$((number + 1))
    done
    ended=$(date +%s%N)
    echo $((ended - begun))
}

mkdir "$MNT/create"
before=$(sent)
ours=$(make "$MNT/create")
sync -f "$MNT/create"
after=$(sent)
theirs=$(make "$beside")
awk -v files="$FILES" -v sent=$((after - before)) -v ours="$ours" -v theirs="$theirs" 'BEGIN {
    printf "create  %.4f requests per file, %.0f files/s; %.0f files/s beside it, %.1f times\n",
        sent / files, files / ours * 1e9, files / theirs * 1e9, ours / theirs
    exit !(sent / files < 0.05)
}'
