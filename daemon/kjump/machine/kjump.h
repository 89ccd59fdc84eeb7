/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the native parts share.  See layout.py for what lies on the target. */
#ifndef KJUMP_H
#define KJUMP_H

#include <stdint.h>

#define PAGE 4096u

enum { EXTENT_DATA = 0, EXTENT_ZERO = 1 };

/* As on the target: little-endian, 16 bytes. */
struct extent {
	uint64_t pfn;
	uint32_t pages;
	uint32_t kind;
};

/* Pages brought together for one chunk.  Mirrors kjump.machine.pages.Bundle. */
struct bundle {
	uint8_t *pages;
	uint64_t room, used;			/* in pages */
	uint64_t zeros;				/* pages of zeros that were listed */
	struct extent *data;			/* those with data ... */
	uint64_t data_room, data_used;
	struct extent *extents;			/* ... and all, those of zeros included */
	uint64_t extents_room, extents_used;
};

#endif
