// A library for LD_PRELOAD. The time of day is as many seconds ahead of that of the machine as the first eight
// bytes of the file CLOCK_AHEAD say. The monotonic clock is that of the machine.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile long long none, *ahead = &none;

__attribute__((constructor)) static void start(void) {
	const char *file = getenv("CLOCK_AHEAD");
	if (!file)
		return;
	int fd = open(file, O_RDONLY);
	void *page = mmap(NULL, sizeof *ahead, PROT_READ, MAP_SHARED, fd, 0);
	// A test whose clock does not jump would show nothing.
	if (page == MAP_FAILED)
		abort();
	close(fd);
	ahead = page;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
	static int (*machine)(clockid_t, struct timespec *);
	if (!machine)
		machine = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
	int failed = machine(clock, now);
	if (!failed && clock == CLOCK_REALTIME)
		now->tv_sec += *ahead;
	return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
	struct timespec t;
	(void)zone;
	if (clock_gettime(CLOCK_REALTIME, &t))
		return -1;
	now->tv_sec = t.tv_sec;
	now->tv_usec = t.tv_nsec / 1000;
	return 0;
}

time_t time(time_t *to) {
	struct timespec t;
	clock_gettime(CLOCK_REALTIME, &t);
	if (to)
		*to = t.tv_sec;
	return t.tv_sec;
}
