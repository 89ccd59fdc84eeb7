# SPDX-License-Identifier: GPL-2.0-or-later
"""kjump: hibernation by kexec jump.

Three kernels take part in one cycle, and each has its own package here:

``session``
    the running system: decides, stages the helper kernel, jumps, reports.
``helper``
    the staged kernel: copies the session's memory to the target, powers off.
``resume``
    the kernel of the next power-on: puts the memory back and jumps.

They never import one another.  What they share is the channel between them
(``handoff``), the image on disk (``image``) and the machine (``machine``).
``cli`` is what a person types, ``initrd`` makes the initrds of the other two.
"""

VERSION = "0.1.0"
