# Runs a daemon of another root file system as this process's child. This process is the first of new mount, network and process namespaces.
#     start.sh ROOT COMMAND...
root=$1
shift
mount --make-rprivate /
mount --bind "$root" "$root"
cd "$root"
mkdir -p old
mount -t proc proc proc
mount -t sysfs sysfs sys
mount --rbind /sys/fs/cgroup sys/fs/cgroup
mount --rbind /dev dev
mount -t tmpfs -o mode=755 tmpfs run
pivot_root . old # guests have user namespaces, which nothing in a chroot may make
umount -l /old
ip link set lo up
"$@" &
wait # as the first process of its namespace it takes in all that others leave
