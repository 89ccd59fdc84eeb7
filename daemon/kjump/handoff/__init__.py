"""What one kernel tells the next: the ``KJUMP`` note, the return cell, the report page."""
