package mount

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// ioctl passes the kernel a block of memory that it reads or fills.
func ioctl[T any](fd int, request uintptr, arg *T) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(unsafe.Pointer(arg))); errno != 0 { //nolint:gosec // the kernel wants an address
		return errno
	}
	return nil
}
