#!/bin/busybox sh
# The first program of a guest. stage=install, from the kernel's command line, puts a small system
# on the empty disk; stage=boot hands over to the one that is there. Any failure ends this shell,
# and with it the guest: the kernel panics, and DONE is never printed.
set -eu
export PATH=/sbin:/bin

/bin/busybox --install -s /bin
mkdir -p /proc /sys /dev /mnt
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for module in /modules/*; do
    insmod "$module"
done

if [ "$stage" = install ]; then
    echo 'start=2048, type=83' | sfdisk --quiet --label dos /dev/vda
    /sbin/mke2fs -q -t ext4 -L system /dev/vda1
    mount -t ext4 /dev/vda1 /mnt
    mkdir -p /mnt/bin /mnt/sbin /mnt/proc /mnt/dev
    cp /bin/busybox /mnt/bin/busybox
    cp /disk_init /mnt/sbin/init
    chroot /mnt /bin/busybox --install -s /bin
    cp -r /seeds /mnt/srv
    sync
    umount /mnt
    echo DONE
    poweroff -f
else
    mount -t ext4 /dev/vda1 /mnt
    mount -o move /dev /mnt/dev
    exec switch_root /mnt /sbin/init
fi
