#!/bin/bash
# The quick start works for an ordinary user in a default container: no root, no FUSE, no io_uring.
# Runs it as nobody under a seccomp filter that denies io_uring; as root only to become nobody.
set -euo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# nobody may not be able to reach the checkout: what is needed is copied to where it can.
mkdir "$work/tools" "$work/home"
cp "$top/tools/quickstart" "$work/tools/"
cp "$top/build/tools/snapctl/snapctl" "$top/tests/support/without_io_uring.py" "$work/"
chmod -R go+rX "$work"
as_nobody=()
if [ "$(id -u)" -eq 0 ]; then
  chown -R 65534:65534 "$work"
  as_nobody=(setpriv --reuid=65534 --regid=65534 --clear-groups)
fi
cd "$work"
HOME=$work/home SNAPCTL=$work/snapctl "${as_nobody[@]}" "$work/without_io_uring.py" \
  "$work/tools/quickstart" --no-setup --dir "$work/run" | tee "$work/output"
grep -q 'reached with nbdcopy and debugfs' "$work/output"
grep -q 'files are the same' "$work/output"
