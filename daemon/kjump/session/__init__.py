"""The running system's side: decide, stage, jump, report.  Never runs in an initrd."""
