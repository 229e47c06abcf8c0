#!/bin/bash
# run-in-guest.sh [options] [--] COMMAND [ARG...]
# Runs COMMAND as root inside a throw-away User-mode Linux guest (a real Linux
# 6.1 kernel running as an ordinary process: no KVM, no host modules) whose
# root directory is the host's own "/" (hostfs), so every host binary works.
# Inside: /proc /sys /dev /dev/shm /run mounted, lo up, nbd loaded, same cwd and
# environment.  Prints COMMAND's stdout+stderr, returns its exit status
# (124 timeout, 137 power cut by -k, 125 the guest did not get through).
#   -d FILE[,SIZE]  ext4 disk (created and formatted when absent, SIZE default
#                   1G); n-th disk is /dev/ubd[a-h], mounted on /run/disk[0-7]
#   -D FILE         raw disk, only /dev/ubd[a-h], not mounted
#   -V              volatile write cache: the -d disks are mounted through an
#                   nbdkit writeback cache that lives in guest memory, so that a
#                   power cut also loses what no FLUSH/FUA made stable
#                   (without -V only the guest's page cache is lost)
#   -k FILE         power cut: SIGKILL the guest once FILE exists
#   -t SEC          timeout for everything, boot included (default 300)
#   -m MEM          guest memory (default 1G; sparse file in $GUEST_SHM or /dev/shm)
#   -n N            number of /dev/nbdX (default 16; -V takes the last ones)
#   -M "MOD ..."    more modules, e.g. -M "dm-thin-pool loop"
#   -l FILE         keep the guest's kernel log there
# Needs: package user-mode-linux (or UML_KERNEL=/path/linux.uml, with its modules
# in ../lib/uml/modules), perl-base, g++; nbdkit and nbd-client for -V.
set -u
die() { echo "run-in-guest: $*" >&2; exit 125; }
here=$(cd "$(dirname "$0")" && pwd)
UML=${UML_KERNEL:-$(command -v linux.uml || echo "$here/uml/usr/bin/linux.uml")}
[ -x "$UML" ] || die "no linux.uml (apt-get install user-mode-linux)"
moddir=$(ls -d "$(dirname "$(realpath "$UML")")"/../lib/uml/modules/* | tail -1)
disks=() mounts='' nd=0 volatile='' cut='' limit=300 mem=1G nbds=16 mods='' klog=''
add_disk() { disks+=("ubd$nd=$(realpath "$1")"); nd=$((nd + 1)); [ $nd -le 8 ] || die "at most 8 disks"; }
while getopts d:D:Vk:t:m:n:M:l: o; do case $o in
  d) f=${OPTARG%%,*} size=1G; case $OPTARG in *,*) size=${OPTARG##*,};; esac
     [ -e "$f" ] || { truncate -s "$size" "$f" && mkfs.ext4 -q -F "$f"; } || die "cannot create $f"
     mounts+="$nd "; add_disk "$f";;
  D) add_disk "$OPTARG";;
  V) volatile=1;; k) cut=$OPTARG;; t) limit=$OPTARG;; m) mem=$OPTARG;;
  n) nbds=$OPTARG;; M) mods=$OPTARG;; l) klog=$OPTARG;; *) die "bad option (see the head of $0)";;
esac; done
shift $((OPTIND - 1)); [ $# -gt 0 ] || die "no command"
work=$(mktemp -d "${TMPDIR:-/tmp}/guest.XXXXXX") || die "mktemp"
trap 'rm -rf "$work"' EXIT

# The guest's init, first half: perl and bare system calls, because a fork costs
# much in UML (and so that neither kmod nor iproute2 is needed).
cat >"$work/init" <<'INIT'
#!/usr/bin/perl
my $w = $ENV{work};                               # "work=..." on the kernel command line
sub mnt { my ($fs, $dir, $none) = (@_, ""); mkdir $dir; syscall(165, $fs, $dir, $fs, 0, $none) == 0 or warn "mount $dir: $!\n" }
mnt("proc", "/proc"); mnt("sysfs", "/sys"); mnt("devtmpfs", "/dev") unless -e "/dev/null";
mnt("devpts", "/dev/pts"); mnt("tmpfs", "/dev/shm"); mnt("tmpfs", "/run"); mkdir "/run/$_" for qw(lock mnt);
open STDIN, "</dev/null"; open STDOUT, ">/dev/tty0"; open STDERR, ">&STDOUT"; $| = 1;
my $t = "\0" x 64; ioctl STDOUT, 0x5401, $t;      # TCGETS, drop OPOST (no \r\n), TCSETS
substr($t, 4, 4) = pack "L", unpack("x4L", $t) & ~1; ioctl STDOUT, 0x5402, $t;
symlink "/proc/self/fd", "/dev/fd"; symlink "fd/$_->[0]", "/dev/$_->[1]" for [0, "stdin"], [1, "stdout"], [2, "stderr"];
socket my $s, 2, 2, 0; my $lo = pack "a16 s x22", "lo", 0x49; ioctl $s, 0x8914, $lo;   # ifup lo
my $h = "guest"; syscall(170, $h, 5);             # sethostname
sub load { my ($m, $o) = @_; $m =~ s/[-_]/[-_]/g; open my $d, "<", "$ENV{moddir}/modules.dep" or die "$ENV{moddir}: $!\n";
  for (<$d>) { next unless m{^(\S*/$m\.ko):\s*(.*)}; my @l = (reverse(split / /, $2), $1);
    for (@l) { open my $f, "<", "$ENV{moddir}/$_"; my $p = $_ eq $l[-1] ? $o : "";
      syscall(313, fileno $f, $p, 0) == 0 or $!{EEXIST} or warn "load $_: $!\n" } return }   # finit_module
  warn "no module $m (built in?)\n" }
load("nbd", "nbds_max=$ENV{nbds}"); load($_, "") for split /,/, $ENV{mods};
exec "/bin/bash", "$w/run";
INIT
# Second half: disks, the command, its status.
{ export -p | grep -vE '^declare -x (_|PWD|OLDPWD|SHLVL)='; declare -p mounts volatile nbds work
  printf 'cd %q\nset -- ' "$PWD"; printf '%q ' "$@"; cat <<'RUN'

vnbd() { echo /dev/nbd$((nbds - 1 - $1)); }
for i in $mounts; do
  d=(/dev/ubd{a,b,c,d,e,f,g,h}); d=${d[i]}; mkdir -p /run/disk$i
  if [ -n "$volatile" ]; then   # the cache (an unlinked file on tmpfs) dies with the guest
    TMPDIR=/dev/shm nbdkit -U /run/disk$i.sock --filter=cache file $d cache=writeback
    nbd-client -unix /run/disk$i.sock $(vnbd $i) >/dev/null 2>&1; d=$(vnbd $i)
  fi
  mount -t ext4 $d /run/disk$i || { echo "run-in-guest: cannot mount $d"; echo 125 >"$work/rc"; }
done
if [ ! -e "$work/rc" ]; then
  ( "$@" ); rc=$?
  for i in $mounts; do umount /run/disk$i && [ -n "$volatile" ] && nbd-client -d $(vnbd $i) >/dev/null; done
  echo $rc >"$work/rc"
fi
sync; echo o >/proc/sysrq-trigger; sleep 60
RUN
} >"$work/run"; chmod +x "$work/init"

# Where the processor has more registers than UML knows of, it does not get through without this.
c++ -O1 -shared -fPIC -o "$work/wide_xstate.so" "$here/wide_xstate.cpp" || die "cannot compile $here/wide_xstate.cpp"

# Own process group: UML is several host processes, and all must die in one
# kill(2), or a traced guest process would run on, natively, when its tracer dies.
exec 3> >(cat); catpid=$!; exec 5<> <(:)      # 5: a pipe nobody writes, to sleep on
: >"$work/kmsg"
LD_PRELOAD=$work/wide_xstate.so TMPDIR=${GUEST_SHM:-/dev/shm} setsid "$UML" mem="$mem" root=none rootfstype=hostfs rootflags=/ rw \
  init="$work/init" work="$work" moddir="$moddir" nbds="$nbds" mods="${mods// /,}" \
  pty.legacy_count=0 uml_dir="$work/" noreboot panic=-1 con=null con0=null,fd:3 \
  ssl0=null,fd:4 console=ttyS0 ${disks[@]+"${disks[@]}"} </dev/null >"$work/boot" 2>&1 4>>"$work/kmsg" 5>&- &
pid=$!; why=''
trap 'kill -9 -- -$pid 2>/dev/null; rm -rf "$work"' EXIT; trap 'exit 143' TERM INT HUP
us() { echo $((${EPOCHREALTIME/[.,]/} + $(printf '%.0f' "${1}e6"))); }
end=$(us "$limit")
exec 6>&2 2>/dev/null                         # no "Killed" message from bash
while kill -0 $pid; do
  read -rt 0.02 -u 5; now=${EPOCHREALTIME/[.,]/}
  [ "$now" -lt "$end" ] || why=124
  [ -z "$cut" ] || [ ! -e "$cut" ] || why=137
  [ -z "$why" ] || break
done
kill -9 -- -$pid; wait $pid                   # then until no I/O thread holds a disk file
for ((i = 0; i < 500; i++)); do kill -0 -- -$pid || break; read -rt 0.02 -u 5; done
exec 3>&-; wait $catpid; exec 2>&6
[ -z "$klog" ] || cat "$work/boot" "$work/kmsg" >"$klog"
rc=${why:-$(cat "$work/rc" 2>/dev/null)}
[ -n "$rc" ] || { cat "$work/boot" "$work/kmsg" | grep -v '\[<' | tail -n 20 >&2; rc=125; }
exit "$rc"
