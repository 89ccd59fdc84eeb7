// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * /dev/snapshot: writing many pages to a file that takes one page at a time, and the jump.
 *
 * kjump.resume.snapshot calls this through ctypes.
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
 * Write `count` pages, each as a vector of its own, so that the kernel loops over them in one call.
 * Returns how many the kernel took; *error is the errno that stopped it, or 0 if it took all.
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
 * Freeze everything else, and jump.  Returns only if that failed: the errno.
 *
 * Python must not make these two calls itself.  The kernel also freezes the other threads of this
 * program; if one of them held the interpreter's lock, the first call would never return.
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
