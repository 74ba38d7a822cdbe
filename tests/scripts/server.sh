#!/bin/sh
# What a server's processor does for a transaction, and for a message about a lock.
#
#   cargo xtask bench server
#
# FILES   files that one mount makes durable one by one; 500, if nothing is said
# ROUNDS  times that a directory goes from one mount to the other and back; 200, if nothing is said
#
# What is counted is the processor's time of the server's process and those it has started: of a
# guest, that is QEMU's, so what QEMU emulates is in it. A guest that halts takes none. What the
# server takes when nobody asks for anything is told, and taken off.

set -eu

FILES=${FILES:-500}
ROUNDS=${ROUNDS:-200}

# Nanoseconds.
spent() {
    cat "/proc/$NODE0"/task/*/schedstat $(for child in $(cat "/proc/$NODE0"/task/*/children); do
        echo "/proc/$child/task/*/schedstat"
    done) 2>/dev/null | awk '{ sum += $1 } END { printf "%.0f\n", sum }'
}

sent() {
    for mount in "$MNT0" "$MNT1"; do
        getfattr --absolute-names -n outrider.counters --only-values "$mount"
    done | awk -v name="sent.$1" '$1 == name { sum += $2 } END { print sum + 0 }'
}

# told WHAT COUNTER BEFORE-COUNT BEFORE-SPENT BEFORE-TIME
told() {
    awk -v what="$1" -v count=$(($(sent "$2") - $3)) -v spent=$(($(spent) - $4)) \
        -v time=$(($(date +%s%N) - $5)) -v idle="$idle" 'BEGIN {
        printf "server  %-32s %6d, %.1f us of the processor each\n", \
            what, count, (spent - idle * time) / count / 1000
    }'
}

before=$(spent)
sleep 5
idle=$(awk -v spent=$(($(spent) - before)) 'BEGIN { printf "%.6f\n", spent / 5e9 }')
echo "server  of the processor when idle       $idle"

mkdir "$MNT0/server"
count=$(sent transactions) cpu=$(spent) time=$(date +%s%N) number=0
while [ "$number" -lt "$FILES" ]; do
    : >"$MNT0/server/$number"
    sync "$MNT0/server/$number"
    number=$((number + 1))
done
told "transactions of one file:" transactions "$count" "$cpu" "$time"

mkdir "$MNT0/shared"
: >"$MNT1/shared/first"
count=$(sent lock_messages) cpu=$(spent) time=$(date +%s%N) number=0
while [ "$number" -lt "$ROUNDS" ]; do
    chmod 700 "$MNT0/shared"
    chmod 755 "$MNT1/shared"
    number=$((number + 1))
done
told "messages about contended locks:" lock_messages "$count" "$cpu" "$time"
