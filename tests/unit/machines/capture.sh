#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
#
# Prints what nas_info reads of this machine, in one text: `sh capture.sh > NAME.txt`.
# It changes nothing and needs root only for smartctl. BusyBox will do. What a capture was made of
# is said on top of it; addresses and names of the place it was made at are replaced by those for
# documentation.
#
# Those of QEMU are of Debian 12 in an initramfs: linux-image-amd64 or -arm64 with the modules of
# the devices, or -armmp with programs of armhf, busybox-static, util-linux, ethtool, smartmontools, iproute2, systemd, udev and what
# they need, fetched by `apt-get -o APT::Architecture=arm64 -o Dir::State=… download` and unpacked
# by `dpkg-deb --extract`. Its init mounts /proc, /sys, /dev and the control groups, starts
# systemd-udevd, runs `udevadm trigger` and `udevadm settle`, makes swap and addresses (192.0.2.10,
# a default route by 192.0.2.1), listens on port 80, and prints this script's text to the console.
#
#   path = text        a file of one line
#   path:              a file of more; its lines follow, each behind a tab
#   path -> target     a link
#   path/              a folder
#   $ program words    what a program printed, behind tabs; nothing where it is missing
#
# A byte 0 is shown as ␀. A file that cannot be read is left out, as one that is not there.
set -u
export LC_ALL=C
cd /
tab=$(printf '\t')
one=$(printf '\001')
newline='
'

behind_tabs() { sed "s/[ $tab]*$//; s/^./$tab&/"; }

show() {
    for path; do
        if [ -L "$path" ]; then
            echo "$path -> $(readlink "$path")"
        elif [ -d "$path" ]; then
            echo "$path/"
        elif [ -f "$path" ] && cat "$path" >/dev/null 2>&1; then
            text=$(tr '\000' '\001' <"$path" | sed "s/$one/␀/g")
            case $text in
            *"$newline"*) echo "$path:" && echo "$text" | behind_tabs ;;
            *) echo "$path = $text" ;;
            esac
        fi
    done
}

# Of what is a device, or holds what concerns nobody: only that it is there.
there() {
    for path; do
        [ ! -e "$path" ] || echo "$path ="
    done
}

ask() {
    echo "\$ $*"
    "$@" 2>/dev/null </dev/null | behind_tabs
}

# Without line breaks, which make JSON thrice as long.
ask_json() {
    echo "\$ $*"
    "$@" 2>/dev/null </dev/null | sed 's/^ *//' | tr -d '\n' | behind_tabs
    echo
}

ask uname -m
show proc/cpuinfo proc/device-tree/model
cpus=sys/devices/system/cpu
show $cpus/online $cpus/cpu[0-9]*/topology/thread_siblings_list $cpus/cpu[0-9]*/cpu_capacity
show $cpus/cpu0/cpufreq/scaling_governor $cpus/cpu0/cpufreq/scaling_driver
show sys/devices/cpu_atom/cpus

show proc/meminfo proc/swaps
show sys/fs/cgroup/cgroup.controllers proc/cgroups
# Folders of controllers, which only version 1 has.
[ -e sys/fs/cgroup/cgroup.controllers ] || show sys/fs/cgroup/*

ask_json lsblk --json --bytes --output NAME,TYPE,SIZE,ROTA,TRAN,MODEL,RO
for disk in sys/block/sd* sys/block/nvme*; do
    [ -e "$disk" ] || continue
    ask_json smartctl --json --nocheck=standby,3 --health --attributes --log=devstat \
        "/dev/${disk##*/}"
done
show dev/disk/by-id/* proc/self/mounts

show proc/net/route proc/net/ipv6_route
for nic in sys/class/net/*; do
    [ -d "$nic" ] || continue # bonding_masters
    echo "$nic/"
    [ ! -e "$nic/device" ] || echo "$nic/device/"
    show "$nic"/device/driver "$nic"/master "$nic"/lower_* "$nic"/upper_*
    show "$nic"/ifindex "$nic"/iflink "$nic"/carrier "$nic"/speed "$nic"/duplex
    ask ethtool "${nic##*/}"
done

for device in sys/bus/pci/devices/*; do
    show "$device"/class "$device"/vendor "$device"/device "$device"/drm/renderD* "$device"/accel/*
done
for device in sys/bus/usb/devices/*; do
    show "$device"/idVendor "$device"/idProduct "$device"/busnum "$device"/devnum
done
for node in sys/class/drm/renderD*; do
    [ -e "$node" ] || continue
    show "$node"
    real=$(readlink -f "$node")
    show "${real#/}/device/driver"
done
there dev/apex_* dev/hailo*
show sys/class/tpm/tpm0/tpm_version_major

there usr/bin/midclt etc/synoinfo.conf etc/config/uLinux.conf etc/unraid-version
there etc/openmediavault/config.xml usr/bin/pveversion etc/armbian-release etc/rpi-issue
ask docker --version
ask ss -Hlntp
ask systemd-detect-virt
ask timedatectl show --property=NTPSynchronized --value
