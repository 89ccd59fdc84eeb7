"""The packages as they are built, and what package managers and initrd makers call of ours."""
