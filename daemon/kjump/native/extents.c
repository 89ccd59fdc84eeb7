// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Lists of extents as they lie on the target, checked and walked without a Python object for each.
 *
 * Pure functions over memory they are given.  Called from kjump.image.extents through ctypes.
 */
#include <stddef.h>

#include "kjump.h"

#define MAX_PFN (1ull << 40)

/*
 * Do the extents ascend without overlap, none empty, of a known kind?  Counts the pages of each
 * kind.  Returns 0 if not.
 */
int kj_extents_check(const struct extent *list, uint64_t count, uint64_t *data, uint64_t *zero)
{
	uint64_t end = 0;

	*data = *zero = 0;
	for (uint64_t i = 0; i < count; i++) {
		const struct extent *e = list + i;

		if (e->pfn < end || !e->pages || e->kind > EXTENT_ZERO || e->pfn >= MAX_PFN ||
		    e->pfn + e->pages > MAX_PFN)
			return 0;
		*(e->kind == EXTENT_DATA ? data : zero) += e->pages;
		end = e->pfn + e->pages;
	}
	return 1;
}

/*
 * Does a chunk bring just the pages that the index has next?  The walk through the index goes on
 * at *at, *inside, over its data extents only.  Returns 0 if not.
 */
int kj_extents_due(const struct extent *index, uint64_t count, uint64_t *at, uint64_t *inside,
		   const struct extent *chunk, uint64_t chunk_count)
{
	for (uint64_t i = 0; i < chunk_count; i++) {
		uint64_t pfn = chunk[i].pfn, left = chunk[i].pages;

		while (left) {
			uint64_t n;

			while (*at < count && (index[*at].kind != EXTENT_DATA ||
					       *inside == index[*at].pages)) {
				++*at;
				*inside = 0;
			}
			if (*at == count || index[*at].pfn + *inside != pfn)
				return 0;
			n = index[*at].pages - *inside;
			n = n < left ? n : left;
			*inside += n;
			pfn += n;
			left -= n;
		}
	}
	return 1;
}

/* Does the index have no data behind *at, *inside? */
int kj_extents_end(const struct extent *index, uint64_t count, uint64_t at, uint64_t inside)
{
	for (; at < count; at++, inside = 0)
		if (index[at].kind == EXTENT_DATA && inside < index[at].pages)
			return 0;
	return 1;
}

/*
 * The first extent that does not lie in one of the ascending ranges (pairs of pfns), or `count`.
 */
uint64_t kj_extents_outside(const struct extent *list, uint64_t count, const uint64_t *ranges,
			    uint64_t range_count)
{
	uint64_t r = 0;

	for (uint64_t i = 0; i < count; i++) {
		while (r < range_count && list[i].pfn >= ranges[2 * r + 1])
			r++;
		if (r == range_count || list[i].pfn < ranges[2 * r] ||
		    list[i].pfn + list[i].pages > ranges[2 * r + 1])
			return i;
	}
	return count;
}

/* All page frame numbers one after the other.  `out` has room for all. */
void kj_extents_numbers(const struct extent *list, uint64_t count, uint64_t *out)
{
	for (uint64_t i = 0; i < count; i++)
		for (uint32_t n = 0; n < list[i].pages; n++)
			*out++ = list[i].pfn + n;
}

/*
 * The first `most` extents of zeros go to `zeros`, all others to `rest`; both have room for all.
 * Returns how many went to `zeros`.
 */
uint64_t kj_extents_split(const struct extent *list, uint64_t count, uint64_t most,
			  struct extent *zeros, struct extent *rest)
{
	uint64_t found = 0;

	for (uint64_t i = 0; i < count; i++) {
		if (list[i].kind == EXTENT_ZERO && found < most)
			zeros[found++] = list[i];
		else
			*rest++ = list[i];
	}
	return found;
}
