// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Taking free slots of a swap area, one system call a page: SNAPSHOT_ALLOC_SWAP_PAGE of
 * /dev/snapshot (include/uapi/linux/suspend_ioctls.h, kernel/power/user.c), which answers with the
 * slot's byte offset on the area's device, of swap files too.
 *
 * Called from kjump.machine.swap through ctypes.  The slots stay taken until the descriptor is
 * closed.
 */
#include <errno.h>
#include <stdint.h>
#include <sys/ioctl.h>

#include "kjump.h"

#define ALLOC_SWAP_PAGE _IOR('3', 20, int64_t)

/*
 * Take up to `pages` slots; (offset, length) pairs into out[], neighbours that come one after the
 * other joined.  Ends early where no slot is free, or where out[] has no room for one more pair
 * (`room` of them).  Returns how many pairs; -errno on any other failure.  *taken counts slots.
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
