// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Lists of extents in the form of the target, checked and walked without a Python object for each.
 *
 * Pure functions over the memory that the caller passes; kjump.image.extents calls them through
 * ctypes.
 */
#include <stddef.h>

#include "kjump.h"

#define MAX_PFN (1ull << 40)

/*
 * Check that the extents ascend without overlap, that none is empty, and that their kinds are
 * known; count the pages of each kind.  Returns 0 if the list is wrong.
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
 * Check that a chunk contains exactly the pages that come next in the index.  The walk through the
 * index continues at *at, *inside, over its data extents only.  Returns 0 if the chunk is wrong.
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

/* Returns 1 if the index has no data after `at`, `inside`, else 0. */
int kj_extents_end(const struct extent *index, uint64_t count, uint64_t at, uint64_t inside)
{
	for (; at < count; at++, inside = 0)
		if (index[at].kind == EXTENT_DATA && inside < index[at].pages)
			return 0;
	return 1;
}

/*
 * Find the first extent that does not lie in one of the ascending ranges (pairs of pfns).  Returns
 * its number, or `count` if there is none.
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

/* Write all page frame numbers one after the other to `out`, which has room for them. */
void kj_extents_numbers(const struct extent *list, uint64_t count, uint64_t *out)
{
	for (uint64_t i = 0; i < count; i++)
		for (uint32_t n = 0; n < list[i].pages; n++)
			*out++ = list[i].pfn + n;
}

/*
 * Copy the first `most` extents of zeros to `zeros`, and all others to `rest`; both have room for
 * all.  Returns the number of extents in `zeros`.
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
