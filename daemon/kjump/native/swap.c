// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Taking free slots of a swap area, with one system call a page: SNAPSHOT_ALLOC_SWAP_PAGE of
 * /dev/snapshot (include/uapi/linux/suspend_ioctls.h, kernel/power/user.c).  It returns the slot's
 * byte offset on the device of the area, also for swap files.
 *
 * kjump.machine.swap calls this through ctypes.  The slots stay taken until the descriptor is
 * closed.
 */
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/ioctl.h>

#include "kjump.h"

#define ALLOC_SWAP_PAGE _IOR('3', 20, int64_t)

/*
 * Take up to `pages` slots, and write them to out[] as (offset, length) pairs; a slot that directly
 * follows the one before is joined to it.  Stops early if no slot is free, or if out[], with room
 * for `room` pairs, is full.  Returns the number of pairs, or -errno for any other failure.  *taken
 * counts slots.
 */
int64_t kj_take_slots(int fd, uint64_t pages, uint64_t *out, uint64_t room, uint64_t *taken)
{
	uint64_t n = 0;

	*taken = 0;
	while (*taken < pages) {
		int64_t offset = 0;

		if (n == room)
			break;
		if (ioctl(fd, ALLOC_SWAP_PAGE, &offset)) {
			if (errno == ENOSPC)
				break;
			return -errno;
		}
		++*taken;
		if (n && out[2 * n - 2] + out[2 * n - 1] == (uint64_t)offset) {
			out[2 * n - 1] += PAGE;
			continue;
		}
		out[2 * n] = (uint64_t)offset;
		out[2 * n + 1] = PAGE;
		n++;
	}
	return (int64_t)n;
}

static int by_offset(const void *one, const void *other)
{
	const uint64_t *a = one, *b = other;

	return (a[0] > b[0]) - (a[0] < b[0]);
}

static int longest_first(const void *one, const void *other)
{
	const uint64_t *a = one, *b = other;

	return a[1] == b[1] ? by_offset(one, other) : (a[1] < b[1]) - (a[1] > b[1]);
}

/*
 * Join neighbours among n (offset, length) pairs, and put the `most` longest, ascending, at the
 * start of pairs[].  Returns how many there are.
 */
uint64_t kj_longest(uint64_t *pairs, uint64_t n, uint64_t most)
{
	uint64_t joined = 0;

	qsort(pairs, n, 2 * sizeof(*pairs), by_offset);
	for (uint64_t i = 0; i < n; i++) {
		uint64_t offset = pairs[2 * i], length = pairs[2 * i + 1];

		if (joined && pairs[2 * joined - 2] + pairs[2 * joined - 1] == offset) {
			pairs[2 * joined - 1] += length;
			continue;
		}
		pairs[2 * joined] = offset;
		pairs[2 * joined + 1] = length;
		joined++;
	}
	if (joined <= most)
		return joined;
	qsort(pairs, joined, 2 * sizeof(*pairs), longest_first);
	qsort(pairs, most, 2 * sizeof(*pairs), by_offset);
	return most;
}
