// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * /dev/snapshot: giving many pages to a file that takes one a time, and the jump.
 *
 * Called from kjump.resume.snapshot through ctypes.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <sys/ioctl.h>
#include <sys/uio.h>

#include "kjump.h"

#define VECTOR 1024			/* UIO_MAXIOV */
#define FREEZE 0x3301			/* uapi/linux/suspend_ioctls.h */
#define UNFREEZE 0x3302
#define ATOMIC_RESTORE 0x3304

/*
 * Write `count` pages, each a vector of its own: the kernel loops over them in one call.  Returns
 * how many were taken; *error is the errno that ended it, 0 where all were.
 */
uint64_t kj_feed(int fd, const uint8_t *data, uint64_t count, int *error)
{
	struct iovec vector[VECTOR];
	uint64_t done = 0;

	*error = 0;
	while (done < count) {
		int n = 0;
		ssize_t taken;

		for (; n < VECTOR && done + n < count; n++)
			vector[n] = (struct iovec){(void *)(data + (done + n) * PAGE), PAGE};
		taken = writev(fd, vector, n);
		if (taken < 0) {
			if (errno == EINTR)
				continue;
			*error = errno;
			return done;
		}
		if (taken == 0 || taken % PAGE) {
			*error = EIO;
			return done;
		}
		done += (uint64_t)taken / PAGE;
	}
	return done;
}

/*
 * Freeze everything else, and jump.  Returns only where that failed: the errno.
 *
 * Not from Python in two calls: the kernel freezes the other threads of this program as well, and
 * one that held the interpreter's lock would keep it, so that the first call never came back.
 */
int kj_restore(int fd)
{
	int error;

	if (ioctl(fd, FREEZE, 0))
		return errno;
	error = ioctl(fd, ATOMIC_RESTORE, 0) ? errno : ECANCELED;
	ioctl(fd, UNFREEZE, 0);
	return error;
}
