# Becomes systemd: root.sh LAYOUT WORK [FOLDER]...
#
# Run as the first process of new namespaces (mount, uts, ipc, net, cgroup, pid), in control groups that were made for it. Its root
# is an overlay of the machine's, whose writable part is a tmpfs at WORK; FOLDERs are there too, read-only. LAYOUT is that of the control
# groups: v1 (systemd calls it hybrid) or v2. What belongs to the machine cannot be changed from here: /sys and /proc/sys are read-only, /dev is a
# new one with few devices, and of the machine's units only those named below exist.
set -eu
layout=$1 work=$2 root=$2/root
shift 2
mount -t tmpfs -o mode=755 kata-cc-test "$work"
mkdir "$work/data" "$work/work" "$root"
mount -t overlay -o "lowerdir=/,upperdir=$work/data,workdir=$work/work" overlay "$root"

mount -t proc proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t tmpfs -o mode=755 run "$root/run"
mount -t tmpfs -o mode=755 dev "$root/dev"
mkdir "$root/dev/net"
for device in null zero full random urandom tty kvm vhost-vsock net/tun; do
    [ -e "/dev/$device" ] || continue
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
ln -s pts/ptmx "$root/dev/ptmx"

groups=$root/sys/fs/cgroup
if [ "$layout" = v1 ]; then
    mount -t tmpfs -o mode=755 groups "$groups"
    # line: NUMBER:CONTROLLERS:PATH
    while IFS=: read -r _ controllers _; do
        case $controllers in
            '') mkdir "$groups/unified" && mount -t cgroup2 cgroup2 "$groups/unified" ;;
            name=systemd) mkdir "$groups/systemd" && mount -t cgroup -o none,name=systemd systemd "$groups/systemd" ;;
            name=*) ;;
            *) mkdir "$groups/$controllers" && mount -t cgroup -o "$controllers" cgroup "$groups/$controllers" ;;
        esac
    done </proc/self/cgroup
else
    mount -t cgroup2 cgroup2 "$groups"
fi

for folder in "$@"; do
    mkdir -p "$root$folder"
    mount --bind "$folder" "$root$folder"
    mount -o remount,bind,ro "$root$folder"
done

units=/usr/lib/systemd/system
mount -t tmpfs -o mode=755 units "$root$units"
for unit in dbus.service dbus.socket shutdown.target systemd-journald.service systemd-journald.socket \
    systemd-journald-dev-log.socket network-online.target multi-user.target; do
    cp "$units/$unit" "$root$units/"
done
for target in sysinit basic kata-cc-test; do
    printf '[Unit]\nDefaultDependencies=no\n' >"$root$units/$target.target"
done
printf 'Requires=dbus.socket systemd-journald.socket systemd-journald-dev-log.socket\n' >>"$root$units/kata-cc-test.target"
for folder in /usr/lib/systemd/system-generators /usr/lib/systemd/system-environment-generators /etc/systemd; do
    [ ! -d "$root$folder" ] || mount -t tmpfs -o mode=755 none "$root$folder"
done
mkdir -p "$root/etc/systemd/system" "$root/etc/systemd/user"
printf '[Manager]\nDefaultTimeoutStopSec=20s\nLogLevel=info\n' >"$root/etc/systemd/system.conf"
head -c 32 /dev/urandom | sha256sum | cut -c1-32 >"$root/etc/machine-id"
rm -rf "$root/var/log/journal"
mkdir -p "$root/tmp"
hostname kata-cc-test

mkdir "$root/.machine"
cd "$root"
pivot_root . .machine
umount -l /.machine
rmdir /.machine
# As systemd has it on a machine; in a container it leaves this to who made that. Credentials of services need it.
mount --make-rshared /
exec env -i container=kata-cc-test PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --system --unit=kata-cc-test.target --show-status=no --log-target=journal </dev/null
