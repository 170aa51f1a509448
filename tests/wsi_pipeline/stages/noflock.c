/* A file system without locks, as Lustre without flock and NFS without lockd: loaded by LD_PRELOAD. */
#include <errno.h>
#include <stdarg.h>
#include <fcntl.h>

int flock(int fd, int operation) { (void)fd; (void)operation; errno = EOPNOTSUPP; return -1; }
int lockf(int fd, int command, off_t length)
{ (void)fd; (void)command; (void)length; errno = EOPNOTSUPP; return -1; }
