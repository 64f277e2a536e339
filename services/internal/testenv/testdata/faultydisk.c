// A library for LD_PRELOAD. If the file FAIL_FSYNC_IF exists, the next fsync removes it and fails with EIO.
// With FAIL_FSYNC_OF, it is the next one of that file. While the file SLOW_FSYNC_WHILE exists, each fsync
// of any file takes 200 ms longer.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static int is(int fd, const char *file) {
	struct stat a, b;
	return !fstat(fd, &a) && !stat(file, &b) && a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

static int fails(int fd) {
	const char *of = getenv("FAIL_FSYNC_OF"), *when = getenv("FAIL_FSYNC_IF");
	return when && (!of || is(fd, of)) && !unlink(when);
}

static int call(const char *name, int fd) {
	const char *slow = getenv("SLOW_FSYNC_WHILE");
	if (slow && !access(slow, F_OK))
		usleep(200000);
	if (fails(fd)) {
		errno = EIO;
		return -1;
	}
	return ((int (*)(int))dlsym(RTLD_NEXT, name))(fd);
}

int fsync(int fd) { return call("fsync", fd); }
int fdatasync(int fd) { return call("fdatasync", fd); }
