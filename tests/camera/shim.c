/* Stand-ins for the kernel's buffer devices, so that libcamera's virtual camera and picamera2's
 * allocators work where the kernel has neither /dev/udmabuf nor /dev/dma_heap (build machines).
 *
 * Loaded with LD_PRELOAD. A device that is opened is an anonymous memory file; a buffer that is
 * asked for is another. Everything else goes to the C library.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/dma-buf.h>
#include <linux/dma-heap.h>
#include <linux/udmabuf.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

static int is_buffer_device(const char *path)
{
	static const char heaps[] = "/dev/dma_heap/";

	return path && (!strcmp(path, "/dev/udmabuf") || !strncmp(path, heaps, sizeof(heaps) - 1));
}

static int memory_file(off_t bytes)
{
	int fd = memfd_create("stand-in", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	if (fd >= 0 && ftruncate(fd, bytes) < 0) {
		close(fd);
		fd = -1;
	}
	return fd;
}

/* The C library has four ways to open a file; C++ and Python between them use all. */
#define MODE_OF(flags)                                                                            \
	mode_t mode = 0;                                                                          \
	if ((flags) & (O_CREAT | O_TMPFILE)) {                                                    \
		va_list rest;                                                                     \
		va_start(rest, flags);                                                            \
		mode = va_arg(rest, mode_t);                                                      \
		va_end(rest);                                                                     \
	}

#define DEFINE_OPEN(name)                                                                         \
	int name(const char *path, int flags, ...)                                                \
	{                                                                                         \
		int (*real)(const char *, int, ...) = dlsym(RTLD_NEXT, #name);                    \
		MODE_OF(flags)                                                                    \
		return is_buffer_device(path) ? memory_file(0) : real(path, flags, mode);         \
	}

#define DEFINE_OPENAT(name)                                                                       \
	int name(int folder, const char *path, int flags, ...)                                    \
	{                                                                                         \
		int (*real)(int, const char *, int, ...) = dlsym(RTLD_NEXT, #name);               \
		MODE_OF(flags)                                                                    \
		return is_buffer_device(path) ? memory_file(0) : real(folder, path, flags, mode); \
	}

DEFINE_OPEN(open)
DEFINE_OPEN(open64)
DEFINE_OPENAT(openat)
DEFINE_OPENAT(openat64)

int ioctl(int fd, unsigned long request, ...)
{
	int (*real)(int, unsigned long, ...) = dlsym(RTLD_NEXT, "ioctl");
	va_list rest;
	void *argument;

	va_start(rest, request);
	argument = va_arg(rest, void *);
	va_end(rest);
	switch (request) {
	case DMA_HEAP_IOCTL_ALLOC: {
		struct dma_heap_allocation_data *wanted = argument;
		int buffer = memory_file((off_t)wanted->len);

		wanted->fd = (unsigned int)buffer;
		return buffer < 0 ? -1 : 0;
	}
	case UDMABUF_CREATE:
		/* The memory that was to be wrapped is a buffer already. */
		return fcntl((int)((struct udmabuf_create *)argument)->memfd, F_DUPFD_CLOEXEC, 0);
	case DMA_BUF_IOCTL_SYNC:
	case DMA_BUF_SET_NAME_A:
	case DMA_BUF_SET_NAME_B:
		return 0;
	default:
		return real(fd, request, argument);
	}
}
