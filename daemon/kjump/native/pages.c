// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Classifying, gathering and scattering pages: the loops that run once per page.
 *
 * Pure functions over the memory that the caller passes; no system calls, no allocation.
 * kjump.machine.pages calls them through ctypes.  A page is 4,096 bytes.  The layout of struct page
 * comes from VMCOREINFO and is passed in; nothing here assumes one.
 */
#include <stddef.h>
#include <string.h>

#include "kjump.h"

enum kind { SAVE = 0, FREE = 1, OFFLINE = 2, POISONED = 3, UNACCEPTED = 4, ZERO = 5 };

/* The same as _Layout in kjump/machine/pages.py. */
struct layout {
	uint32_t size;			/* of struct page, bytes */
	uint32_t flags, mapcount, private;	/* offsets */
	uint32_t buddy, offline, unaccepted;	/* _mapcount values */
	uint32_t has_offline, has_unaccepted;
	uint32_t max_order;		/* orders are below this; not 0 */
	int32_t hwpoison_bit;		/* -1: none */
};

/*
 * The rest of a block: how many of its pages are still to come, and in the top byte their kind.
 * Only a block's first page is marked.
 */
#define LEFT(kind, pages) ((uint64_t)(kind) << 56 | (pages))
#define LEFT_PAGES(left) ((left) & ((1ull << 56) - 1))

/*
 * Write the kind of each of `count` consecutive pages, whose struct pages lie at `base`, to
 * kinds[].  `left` is the rest of a block that began in an earlier call, 0 at first.  Returns the
 * rest of a block that goes on after these pages.
 */
uint64_t kj_classify(const uint8_t *base, uint64_t count, const struct layout *l, uint64_t left,
		     uint8_t *kinds)
{
	uint64_t i = 0;

	while (i < count) {
		const uint8_t *page = base + i * l->size;
		uint32_t mapcount;
		uint64_t flags;

		if (LEFT_PAGES(left)) {
			uint64_t n = LEFT_PAGES(left) < count - i ? LEFT_PAGES(left) : count - i;

			memset(kinds + i, (int)(left >> 56), n);
			left -= n;
			i += n;
			continue;
		}
		memcpy(&mapcount, page + l->mapcount, 4);
		memcpy(&flags, page + l->flags, 8);
		if (l->hwpoison_bit >= 0 && (flags >> l->hwpoison_bit & 1)) {
			kinds[i++] = POISONED;
		} else if (mapcount == l->buddy) {
			uint64_t order;

			memcpy(&order, page + l->private, 8);
			/* a torn or foreign entry: better save one page too many */
			left = order < l->max_order ? LEFT(FREE, 1ull << order) : 0;
			if (!left)
				kinds[i++] = SAVE;
		} else if (l->has_offline && mapcount == l->offline) {
			kinds[i++] = OFFLINE;
		} else if (l->has_unaccepted && mapcount == l->unaccepted) {
			/*
			 * These are always blocks of the highest order, although `private` does not
			 * say so (__free_unaccepted in mm/page_alloc.c, since 6.12).  Their memory
			 * must not be touched before it is accepted.
			 */
			left = LEFT(UNACCEPTED, 1ull << (l->max_order - 1));
		} else {
			kinds[i++] = SAVE;
		}
	}
	return left;
}

static int is_zero(const uint8_t *page)
{
	const uint64_t *w = (const uint64_t *)page;

	for (unsigned i = 0; i < PAGE / 8; i += 8)
		if (w[i] | w[i + 1] | w[i + 2] | w[i + 3] | w[i + 4] | w[i + 5] | w[i + 6] | w[i + 7])
			return 0;
	return 1;
}

/*
 * Returns how many of `count` pages make the next chunk: they contain at most `most` pages of kind
 * SAVE and at most `most` runs.  It is at least 1 unless `count` is 0.
 */
uint64_t kj_span(const uint8_t *kinds, uint64_t count, uint64_t most)
{
	uint64_t i, save = 0, runs = 0;

	for (i = 0; i < count; i++) {
		int begins = !i || kinds[i] != kinds[i - 1];

		if ((kinds[i] == SAVE && save == most) || (begins && runs == most))
			break;
		save += kinds[i] == SAVE;
		runs += begins;
	}
	return i;
}

static void extend(struct extent *list, uint64_t *used, uint64_t pfn, uint32_t kind)
{
	struct extent *last = list + *used - 1;

	if (*used && last->kind == kind && last->pfn + last->pages == pfn) {
		last->pages++;
		return;
	}
	list[(*used)++] = (struct extent){pfn, 1, kind};
}

/*
 * Gather from `count` pages at `base`, the first of which is `pfn`: append pages of kind SAVE to
 * the bundle; pages of zeros become ZERO and are not copied.  Both are added to the bundle's lists.
 * Stops before a page for which there is no room; returns the number of pages handled.
 */
uint64_t kj_gather(const uint8_t *base, uint64_t count, uint8_t *kinds, uint64_t pfn,
		   struct bundle *b)
{
	uint64_t i;

	for (i = 0; i < count; i++) {
		if (kinds[i] != SAVE && kinds[i] != ZERO)
			continue;
		if (b->extents_used == b->extents_room || b->data_used == b->data_room)
			break;
		if (kinds[i] == SAVE && is_zero(base + i * PAGE))
			kinds[i] = ZERO;
		if (kinds[i] == ZERO) {
			extend(b->extents, &b->extents_used, pfn + i, EXTENT_ZERO);
			b->zeros++;
			continue;
		}
		if (b->used == b->room)
			break;
		memcpy(b->pages + b->used++ * PAGE, base + i * PAGE, PAGE);
		extend(b->extents, &b->extents_used, pfn + i, EXTENT_DATA);
		extend(b->data, &b->data_used, pfn + i, EXTENT_DATA);
	}
	return i;
}

/*
 * Write pages to where they belong, as far as that is in [first, last), which is mapped at `base`.
 * It starts at extent *at, of which *inside pages are already done.  `data` has the pages of all
 * extents one after the other, or is NULL for zeros; *done counts the pages taken from it.
 * Returns 0 when all extents are done, 1 when the next page lies outside.
 */
int kj_scatter(const struct extent *list, uint64_t count, uint64_t *at, uint64_t *inside,
	       const uint8_t *data, uint64_t *done, uint8_t *base, uint64_t first, uint64_t last)
{
	for (; *at < count; ++*at, *inside = 0) {
		uint64_t pfn = list[*at].pfn + *inside, left = list[*at].pages - *inside;
		uint64_t n;

		if (pfn < first || pfn >= last)
			return 1;
		n = left < last - pfn ? left : last - pfn;
		if (data)
			memcpy(base + (pfn - first) * PAGE, data + *done * PAGE, n * PAGE);
		else
			memset(base + (pfn - first) * PAGE, 0, n * PAGE);
		*done += n;
		*inside += n;
		if (n < left)
			return 1;
	}
	return 0;
}

/* For each block of `size` flag words: out[] is 1 if any of them has a bit of `mask`, else 0. */
void kj_flagged_blocks(const uint64_t *flags, uint64_t blocks, uint64_t size, uint64_t mask,
		       uint8_t *out)
{
	for (uint64_t b = 0; b < blocks; b++) {
		uint64_t all = 0;

		for (uint64_t i = 0; i < size; i++)
			all |= flags[b * size + i];
		out[b] = (all & mask) != 0;
	}
}

/*
 * Count the present pages in each block of 1 << `shift` pages; `entries` are those of
 * /proc/PID/pagemap.  Pages beyond the last block are not counted.
 */
void kj_count_blocks(const uint64_t *entries, uint64_t count, unsigned shift, uint32_t *out,
		     uint64_t blocks)
{
	for (uint64_t i = 0; i < count; i++) {
		uint64_t block = (entries[i] & ((1ull << 55) - 1)) >> shift;

		if (entries[i] >> 63 && block < blocks)
			out[block]++;
	}
}
