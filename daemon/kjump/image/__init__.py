"""The image on disk: layout, superblock, index, chunks, targets."""
