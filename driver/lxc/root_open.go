package lxc

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/driver"
)

var _ driver.RootOpener = (*Driver)(nil)

// OpenRoot implements driver.RootOpener.
func (d *Driver) OpenRoot(ctx context.Context, uuid string) (*os.File, error) {
	rec, g, err := d.runs(ctx, uuid, "open root of")
	if err != nil {
		return nil, err
	}
	fd, err := unix.Open(procFile(g.init, "root"), unix.O_DIRECTORY|unix.O_PATH|unix.O_CLOEXEC, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open root of instance %s: %w", uuid, driver.ErrNotRunning)
	}
	if err != nil {
		return nil, fmt.Errorf("open root of instance %s: %w", uuid, err)
	}
	// Looked at after it was opened: the number may have become another process's.
	if !inGroup(g.init, payload(rec.Spec.Name)) {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("open root of instance %s: %w", uuid, driver.ErrNotRunning)
	}
	return os.NewFile(uintptr(fd), "root of instance "+uuid), nil
}
