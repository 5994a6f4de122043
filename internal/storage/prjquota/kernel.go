package prjquota

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/internal/storage"
)

// Of include/uapi/linux/fs.h.
const (
	ioctlGetAttributes = 0x801c581f // FS_IOC_FSGETXATTR
	ioctlSetAttributes = 0x401c5820 // FS_IOC_FSSETXATTR
	inherit            = 0x200      // FS_XFLAG_PROJINHERIT
)

// attributes is struct fsxattr.
type attributes struct {
	flags, extentSize, extents, project, cowExtentSize uint32
	_                                                  [8]byte
}

// Of include/uapi/linux/quota.h and dqblk_xfs.h.
const (
	projects  = 2          // PRJQUOTA
	getQuota  = 0x800007   // Q_GETQUOTA
	setQuota  = 0x800008   // Q_SETQUOTA
	getState  = 'X'<<8 + 8 // Q_XGETQSTATV
	accounted = 1 << 4     // FS_QUOTA_PDQ_ACCT
	isLimited = 1 << 5     // FS_QUOTA_PDQ_ENFD
	setLimits = 1 | 4      // QIF_BLIMITS, QIF_ILIMITS
	blockSize = 1024       // QIF_DQBLKSIZE, of limits; use is in bytes
)

// quotaBlock is struct if_dqblk.
type quotaBlock struct {
	hardBlocks, _, bytes  uint64
	hardInodes, _, inodes uint64
	_                     [2]uint64
	valid                 uint32
	_                     uint32
}

// quotaState is struct fs_quota_statv; what follows the flags is not used here.
type quotaState struct {
	version int8
	_       uint8
	flags   uint16
	_       [252]byte
}

// directory is an open directory. It implements quotas.
type directory struct{ file *os.File }

func open(path string) (*directory, error) {
	file, err := os.OpenFile(path, unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("open directory with a quota: %w", err)
	}
	return &directory{file}, nil
}

func (d *directory) close() { _ = d.file.Close() } // nothing was written

func (d *directory) ioctl(request uintptr, a *attributes) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, d.file.Fd(), request, uintptr(unsafe.Pointer(a))); errno != 0 { //nolint:gosec // the kernel wants an address
		return errno
	}
	return nil
}

// project is the id of the directory's project; 0: none.
func (d *directory) project() (uint32, error) {
	var a attributes
	if err := d.ioctl(ioctlGetAttributes, &a); err != nil {
		return 0, fmt.Errorf("read project of %s: %w", d.file.Name(), err)
	}
	return a.project, nil
}

// assign implements quotas.
func (d *directory) assign(id uint32) error {
	var a attributes
	err := d.ioctl(ioctlGetAttributes, &a)
	if err == nil {
		a.project, a.flags = id, a.flags|inherit
		err = d.ioctl(ioctlSetAttributes, &a)
	}
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOTTY) {
		return fmt.Errorf("%w: the file system of %s has no projects: %w", storage.ErrUnsupported, d.file.Name(), err)
	}
	if err != nil {
		return fmt.Errorf("give %s to project %d: %w", d.file.Name(), id, err)
	}
	return nil
}

// quotactl asks the file system of the directory, without a need for its device (quotactl(2), since Linux 5.14).
func quotactl[T any](d *directory, command uintptr, id uint32, arg *T) error {
	_, _, errno := unix.Syscall6(unix.SYS_QUOTACTL_FD, d.file.Fd(), command<<8|projects, uintptr(id), uintptr(unsafe.Pointer(arg)), 0, 0) //nolint:gosec // the kernel wants an address
	if errno != 0 {
		return errno
	}
	return nil
}

// enforced wants limits of projects to be in force; anybody may ask (fs/quota/quota.c:check_quotactl_permission).
func (d *directory) enforced() error {
	state := quotaState{version: 1}
	err := quotactl(d, getState, 0, &state)
	if err == nil && state.flags&isLimited != 0 {
		return nil
	}
	why := "it has no quotas, or the kernel has none for it"
	if err == nil && state.flags&accounted != 0 {
		why = "it counts what projects use, and sets no limit"
	} else if err != nil && !errors.Is(err, unix.ENOSYS) {
		why = err.Error()
	}
	return fmt.Errorf("%w: the file system of %s is not mounted with prjquota: %s", storage.ErrUnsupported, d.file.Name(), why)
}

// look implements quotas.
func (d *directory) look(id uint32) (used, limit Limit, err error) {
	var q quotaBlock
	err = quotactl(d, getQuota, id, &q)
	if errors.Is(err, unix.ENOENT) { // as xfs says of a project that never was
		return Limit{}, Limit{}, nil
	}
	if err != nil {
		return Limit{}, Limit{}, fmt.Errorf("read quota of project %d: %w", id, err)
	}
	return Limit{q.bytes, q.inodes}, Limit{q.hardBlocks * blockSize, q.hardInodes}, nil
}

// limit sets the hard limit of a project; none with a Limit of zeros.
func (d *directory) limit(id uint32, l Limit) error {
	q := quotaBlock{hardBlocks: l.Bytes / blockSize, hardInodes: l.Inodes, valid: setLimits}
	if err := quotactl(d, setQuota, id, &q); err != nil {
		return fmt.Errorf("set quota of project %d: %w", id, err)
	}
	return nil
}
