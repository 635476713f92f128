#!/bin/sh
# The first program of the installed system: it prints the sums of its files as they are found on
# the disk, changes some, and switches the guest off.
set -eu
export PATH=/sbin:/bin

mount -t proc proc /proc
find /srv -type f | sort | while read -r file; do
    echo "SUM $(sha256sum "$file")"
done

echo booted >>/srv/log
rm -f /srv/victim  # a second boot finds none
fstrim /
sync
mount -o remount,ro /
echo DONE
poweroff -f
