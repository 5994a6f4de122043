package link

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ethtoolValue and ethtoolRequest are struct ethtool_value and the part of struct
// ifreq that SIOCETHTOOL reads (linux/ethtool.h, linux/if.h).
type ethtoolValue struct {
	cmd  uint32
	data uint32
}

type ethtoolRequest struct {
	name [unix.IFNAMSIZ]byte
	data unsafe.Pointer
	_    [16]byte // the rest of ifreq's union
}

// DisableTXChecksum makes the kernel fill in the checksums of what leaves through a
// device on the host. Between kernel devices nobody needs them; a userspace switch
// passes the packets on as they are, and receivers drop them.
func DisableTXChecksum(device string) error {
	if err := ethtool(device, unix.ETHTOOL_STXCSUM, 0); err != nil {
		return fmt.Errorf("disable checksum offload of device %s: %w", device, err)
	}
	return nil
}

func ethtool(device string, cmd, data uint32) error {
	if err := checkName(device); err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd) //nolint:errcheck // nothing was written
	value := ethtoolValue{cmd: cmd, data: data}
	req := ethtoolRequest{data: unsafe.Pointer(&value)} //nolint:gosec // the kernel's interface takes an address
	copy(req.name[:], device)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req))) //nolint:gosec // see above
	runtime.KeepAlive(&value)
	if errno != 0 {
		return errno
	}
	return nil
}
