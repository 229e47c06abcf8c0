#!/bin/bash
# build_nbd_tester.sh PROGRAM   Builds nbd-tester-client, the test client of the protocol's reference implementation, from
# Debian's nbd source package, with its transaction log beside it (PROGRAM.tr). Does nothing if PROGRAM is there.
#
# No Debian package has the client, and the mirrors need not have the sources of this release any more: the client speaks
# the protocol, so the sources of any release will do, and the first that can be had is taken. Needs libglib2.0-dev and dpkg-dev.
set -euo pipefail
program=$(realpath "${1:?which program to build}")
[ ! -x "$program" ] || exit 0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
mkdir -p lists/partial
key=/usr/share/keyrings/debian-archive-keyring.gpg
apt=(apt-get -qq -o Dir::Etc::sourcelist="$work/sources.list" -o Dir::Etc::sourceparts=- -o Dir::State::Lists="$work/lists"
     -o APT::Sandbox::User=root -o APT::Get::List-Cleanup=0)
for release in bookworm trixie sid; do
  echo "deb-src [signed-by=$key] http://deb.debian.org/debian $release main" >sources.list
  "${apt[@]}" update >log 2>&1 && "${apt[@]}" source nbd >>log 2>&1 && break
done
source=$(find . -maxdepth 1 -type d -name 'nbd-*')
[ -n "$source" ] || { echo "build_nbd_tester: no release of Debian has nbd's sources here:" >&2; cat log >&2; exit 1; }
cd "$source"
# What its configure would find out on amd64.
cat >config.h <<'CONFIG'
#define SIZEOF_UNSIGNED_SHORT_INT 2
#define SIZEOF_UNSIGNED_INT 4
#define SIZEOF_UNSIGNED_LONG_INT 8
#define SIZEOF_UNSIGNED_LONG_LONG_INT 8
#define HAVE_STDINT_H 1
#define HAVE_SYS_TYPES_H 1
#define ENABLE_DEBUG 0
CONFIG
# shellcheck disable=SC2046
gcc -w -O1 -I. -o "$program.new" tests/run/nbd-tester-client.c cliserv.c $(pkg-config --cflags --libs glib-2.0)
cp tests/run/integrity-test.tr "$program.tr"
mv "$program.new" "$program"
