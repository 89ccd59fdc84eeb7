"""``make bench``: kjump beside the kernel's own hibernation, in the same guest."""
