# SPDX-License-Identifier: GPL-2.0-or-later
"""kjump: hibernation by kexec jump.

Three kernels take part in one cycle, and each has its own package here:

``session``
    the running system: decides, stages the helper kernel, jumps, reports.
``helper``
    the staged kernel: copies the session's memory to the target, powers off.
``resume``
    the kernel of the next power-on: puts the memory back and jumps.

They never import one another.  All three use ``handoff`` (what one kernel passes to the next),
``image`` (the image on disk) and ``machine`` (what is peculiar to x86_64); helper and resume also
use ``console``.  ``cli`` is kjumpctl.  ``initrd`` builds the initrds of helper and boot; it runs in
the session only.  ``native`` has the sources in C and assembly.

This module runs in all three kernels; it holds the version and nothing else.
"""

VERSION = "0.1.0"
