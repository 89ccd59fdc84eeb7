/*
 * Which pages hold something, and bringing them together: the loops that run once per page.
 *
 * Pure functions over memory they are given; no system calls, no allocation.  Called from
 * kjump.machine.pages through ctypes.  A page is 4,096 bytes.  Structure page layouts are passed
 * in, as read from VMCOREINFO, never assumed.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define PAGE 4096u

enum kind { SAVE = 0, FREE = 1, OFFLINE = 2, POISONED = 3, UNACCEPTED = 4, ZERO = 5 };

/* Mirrors kjump.machine.pages.Layout. */
struct layout {
	uint32_t size;			/* of struct page, bytes */
	uint32_t flags, mapcount, private;	/* offsets */
	uint32_t buddy, offline, unaccepted;	/* _mapcount values */
	uint32_t has_offline, has_unaccepted;
	uint32_t max_order;		/* orders are below this */
	int32_t hwpoison_bit;		/* -1: none */
};

/*
 * State of each of `count` consecutive pages whose struct pages lie at `base`, into kinds[].
 * `left` is how many pages of a free block begun in an earlier call are still to come; the
 * number left at the end is returned.
 */
uint64_t kj_classify(const uint8_t *base, uint64_t count, const struct layout *l, uint64_t left,
		     uint8_t *kinds)
{
	uint64_t i = 0;

	while (i < count) {
		const uint8_t *page = base + i * l->size;
		uint32_t mapcount;
		uint64_t flags;

		if (left) {
			uint64_t n = left < count - i ? left : count - i;

			memset(kinds + i, FREE, n);
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
			/* a torn or foreign entry: rather save a page too many */
			left = order < l->max_order ? 1ull << order : 0;
			if (!left)
				kinds[i++] = SAVE;
		} else if (l->has_offline && mapcount == l->offline) {
			kinds[i++] = OFFLINE;
		} else if (l->has_unaccepted && mapcount == l->unaccepted) {
			kinds[i++] = UNACCEPTED;
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
 * Copy the pages of kind SAVE among `count` pages at `base` to `out`, one after the other; pages
 * of zeros become ZERO and are not copied.  Stops when `room` pages were copied.  Returns the
 * number of pages looked at; *copied counts those at `out`.
 */
uint64_t kj_gather(const uint8_t *base, uint64_t count, uint8_t *kinds, uint8_t *out, uint64_t room,
		   uint64_t *copied)
{
	uint64_t i, n = 0;

	for (i = 0; i < count; i++) {
		if (kinds[i] != SAVE)
			continue;
		if (is_zero(base + i * PAGE)) {
			kinds[i] = ZERO;
			continue;
		}
		if (n == room)
			break;
		memcpy(out + n++ * PAGE, base + i * PAGE, PAGE);
	}
	*copied = n;
	return i;
}

/*
 * Runs of equal kind: (start, length, kind) triples into out[], at most `room` of them.
 * Returns how many; -1 if there was no room.
 */
int64_t kj_runs(const uint8_t *kinds, uint64_t count, uint64_t first, uint64_t *out, uint64_t room)
{
	uint64_t i = 0, n = 0;

	while (i < count) {
		uint64_t start = i;

		while (i < count && kinds[i] == kinds[start])
			i++;
		if (n == room)
			return -1;
		out[3 * n] = first + start;
		out[3 * n + 1] = i - start;
		out[3 * n + 2] = kinds[start];
		n++;
	}
	return (int64_t)n;
}
