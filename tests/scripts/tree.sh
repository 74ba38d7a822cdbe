#!/bin/sh
# Copies a tree of files into one mount of a cluster, and sees it through another.
#
#   cargo xtask hosted --mounts 2 --volume FILE --run 'sh tests/scripts/tree.sh'
#   cargo xtask qemu   --mounts 2 --volume FILE --run 'sh tests/scripts/tree.sh'
#
# Run it a second time with the same volume: it finds and compares what the first run has left,
# after servers and mounts were stopped and started, then removes it and begins anew.
#
# SRC    what is copied; ~/.cargo/registry/src, if nothing is said
# FILES  at most so many files of it, the first in order; all, if nothing is said
# KILL   a process id: killed with signal 9 when a third of the files are copied
#
# Ends with 0 if all was as it should be, and says first what was not.

set -eu

SRC=${SRC:-$HOME/.cargo/registry/src}
FILES=${FILES:-}
KILL=${KILL:-}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' HUP INT TERM

fail() {
    echo "tree: $*" >&2
    exit 1
}

# Says how long the last step took, and of what.
mark=$(date +%s%N)
step() {
    now=$(date +%s%N)
    echo "tree: $((($now - $mark) / 1000000)) ms: $*"
    mark=$now
}

# What is to be there: the source itself, or links to the files chosen of it.
if [ -n "$FILES" ]; then
    (cd "$SRC" && find . -type f | LC_ALL=C sort | head -n "$FILES") >"$work/list"
    mkdir "$work/source"
    (cd "$SRC" && tar cf - -T "$work/list") | (cd "$work/source" && tar xf -)
    source=$work/source
else
    source=$SRC
fi
count=$(find "$source" -type f | wc -l)
[ "$count" -ge 9 ] || fail "$SRC has too few files"
size=$(du -sm --apparent-size "$source" | cut -f1)
step "$count files of $size MiB chosen"

same() {
    diff -r --no-dereference "$source" "$1" >"$work/diff" 2>&1 || {
        head -n 5 "$work/diff"
        fail "$1 is not as it was written"
    }
    found=$(find "$1" -type f | wc -l)
    [ "$found" -eq "$count" ] || fail "$1 has $found files instead of $count"
}

# What a run before this one has left: a whole copy, and one that was changed.
if [ -d "$MNT1/tree/whole" ]; then
    same "$MNT1/tree/whole"
    [ ! -e "$MNT1/tree/part/copied" ] || fail "what was renamed is back"
    [ -d "$MNT0/tree/part/renamed" ] || fail "what was renamed is gone"
    step "found and compared what was there before"
    rm -r "$MNT0/tree"
    [ ! -e "$MNT1/tree" ] || fail "what one mount has removed is there on the other"
    step "removed it"
fi

mkdir "$MNT0/tree" "$MNT0/tree/part"
if [ -n "$KILL" ]; then
    (
        while [ "$(find "$MNT0/tree/whole" -type f 2>&1 | wc -l)" -lt $((count / 3)) ]; do
            sleep 0.1
        done
        kill -9 "$KILL" && echo "tree: killed $KILL"
    ) &
fi
cp -r "$source" "$MNT0/tree/whole"
wait
step "copied"
same "$MNT1/tree/whole"
step "compared on the other mount"

# The first directory with several files, twice: changes are made to one of them.
part=$(cd "$source" && find . -type f | LC_ALL=C sort | sed -n 's|/[^/]*$||p' | uniq -c |
    awk '$1 >= 3 { print $2; exit }')
[ -n "$part" ] || fail "$SRC has no directory of three files"
cp -r "$MNT1/tree/whole/$part" "$MNT1/tree/part/copied"
mv "$MNT1/tree/part/copied" "$MNT1/tree/part/renamed"
[ ! -e "$MNT0/tree/part/copied" ] || fail "a directory renamed on one mount stays on the other"
diff -r --no-dereference "$source/$part" "$MNT0/tree/part/renamed" ||
    fail "a directory renamed on one mount is not there on the other"
(cd "$source/$part" && find . -maxdepth 1 -type f) | LC_ALL=C sort >"$work/names"
removed=0 kept=0
while read -r name; do
    if [ $((removed + kept & 1)) -eq 0 ]; then
        rm "$MNT1/tree/part/renamed/$name"
        [ ! -e "$MNT0/tree/part/renamed/$name" ] || fail "$name was removed and is there"
        removed=$((removed + 1))
    else
        mv "$MNT1/tree/part/renamed/$name" "$MNT1/tree/part/renamed/$name.moved"
        cmp "$source/$part/$name" "$MNT0/tree/part/renamed/$name.moved" || fail "$name has changed"
        kept=$((kept + 1))
    fi
done <"$work/names"
step "renamed $kept and removed $removed files on one mount, seen on the other"
