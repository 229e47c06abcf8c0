#!/usr/bin/python3
"""without_io_uring.py COMMAND [ARG...]: runs COMMAND with io_uring denied.

A seccomp filter answers EPERM to io_uring_setup, as the default profiles of container runtimes do.
Inherited by everything that COMMAND starts. Needs package python3-seccomp.
"""

import errno
import os
import sys

import seccomp

if len(sys.argv) < 2:
    sys.exit(__doc__)
seccomp_filter = seccomp.SyscallFilter(defaction=seccomp.ALLOW)
seccomp_filter.add_rule(seccomp.ERRNO(errno.EPERM), 425)  # io_uring_setup
seccomp_filter.load()
os.execvp(sys.argv[1], sys.argv[1:])
