#!/bin/sh
# First process of one lab machine: makes its file systems, moves into them and becomes its reaper.
# Started by lab/node.py inside fresh namespaces; every variable used here is set there. Starts no service.
set -eu

# /proc is still the outer machine's here, so this is the number by which the outer machine knows us.
read -r pid _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ started _ </proc/self/stat
echo "$pid $started" >"$PLACE/pid.new"
mv "$PLACE/pid.new" "$PLACE/pid"

# Held open for as long as this machine runs: nobody removes a cached root that is somebody's lower layer.
handle=5
for layer in $(echo "$LOWERS" | tr : ' '); do
    eval "exec $handle<\"\$layer\""
    flock --shared "$handle"
    handle=$((handle + 1))
done

root=$PLACE/root
mount --make-rprivate /
mount -t overlay overlay -o "lowerdir=$LOWERS,upperdir=$PLACE/upper,workdir=$PLACE/work" "$root"

# Container storage can't lie on an overlay, hence plain folders.
for name in docker containerd containers; do
    mkdir -p "$PLACE/$name" "$root/var/lib/$name"
    mount --bind "$PLACE/$name" "$root/var/lib/$name"
done
if [ -n "$SOURCE" ]; then
    mkdir -p "$root/opt/transship-src"
    mount --bind "$SOURCE" "$root/opt/transship-src"
    mount -o remount,bind,ro "$root/opt/transship-src"
fi

mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
# In a cgroup namespace every hierarchy mounted now begins at this machine's own cgroup.
if [ "$CGROUPS" = unified ]; then
    mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
else
    mount -t tmpfs -o mode=755 tmpfs "$root/sys/fs/cgroup"
    for hierarchy in $CGROUPS; do
        folder=$root/sys/fs/cgroup/${hierarchy#name=}
        mkdir "$folder"
        case $hierarchy in name=*) hierarchy=none,$hierarchy ;; esac
        mount -t cgroup -o "$hierarchy" cgroup "$folder"
    done
fi

mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for device in null zero full random urandom tty kmsg fuse; do
    [ ! -e "/dev/$device" ] || cp -a "/dev/$device" "$root/dev/"
done
mkdir -p "$root/dev/pts" "$root/dev/shm" "$root/dev/mqueue" "$root/dev/net"
mknod "$root/dev/net/tun" c 10 200
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
ln -s fd/0 "$root/dev/stdin"
ln -s fd/1 "$root/dev/stdout"
ln -s fd/2 "$root/dev/stderr"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
mount -t mqueue mqueue "$root/dev/mqueue"
# CRIU keeps criu.kdat in /run, and only if that is a tmpfs.
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mkdir -p "$root/run/lock" "$root/.old"

hostname "$NAME"
cd "$root"
pivot_root . .old
umount -l /.old
rmdir /.old
: >/run/booted
exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    tini -- sleep infinity
