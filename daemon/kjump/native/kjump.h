/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the native parts share.
 *
 * Each struct here and in the *.c files belongs to a Python file, which says what the fields mean.
 * The two change together.
 *
 *   struct extent	kjump/image/layout.py, EXTENT (and kjump/image/extents.py, which calls extents.c)
 *   struct head	kjump/image/layout.py, CHUNK (chunks.c, called by kjump/image/codec.py)
 *   struct bundle	kjump/machine/pages.py, _Bundle
 *   struct layout	kjump/machine/pages.py, _Layout (pages.c)
 *
 * kjump/resume/snapshot.py calls feed.c, kjump/machine/swap.py calls swap.c; these two define none.
 */
#ifndef KJUMP_H
#define KJUMP_H

#include <stdint.h>

#define PAGE 4096u

enum { EXTENT_DATA = 0, EXTENT_ZERO = 1 };

/* The same as on the target: little-endian, 16 bytes. */
struct extent {
	uint64_t pfn;
	uint32_t pages;
	uint32_t kind;
};

/* Pages gathered for one chunk.  The same as _Bundle in kjump/machine/pages.py. */
struct bundle {
	uint8_t *pages;
	uint64_t room, used;			/* in pages */
	uint64_t zeros;				/* pages of zeros that were listed */
	struct extent *data;			/* extents with data ... */
	uint64_t data_room, data_used;
	struct extent *extents;			/* ... and all extents, including zeros */
	uint64_t extents_room, extents_used;
};

#endif
