// Package unsquash unpacks an untrusted squashfs image with the program unsquashfs,
// in a process that can do nothing else: namespaces of its own, every file system
// read-only but the target directory, no devices, no network, and of root's
// capabilities only those that writing owners and modes takes.
package unsquash

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Options of one run; all must be set.
type Options struct {
	Program string // absolute path of unsquashfs
	Image   string // absolute path of the image
	Target  string // absolute path of an empty directory on the file system that is watched
	Entries int    // most files, directories and links
	Bytes   int64  // most bytes of file content, and largest file
	Reserve int64  // free bytes that must stay on the file system
	// Judge looks at the tree, with the program stopped, when more inodes or blocks of the file system came into use
	// than Entries and Bytes explain. Its error ends the run and is Run's. Others write there too, so nil lets it go on.
	Judge func(ctx context.Context) error
}

// Error tells that the image is at fault, in the program's words or in those of the look before it.
type Error struct{ Reason string }

// Error implements error.
func (e *Error) Error() string { return "unpack squashfs: " + e.Reason }

// Run unpacks the image. It needs root. The tree has no device nodes, and it must
// be checked before use: the image decides about owners, sizes and attributes.
func Run(ctx context.Context, o Options) error {
	if err := inspect(o.Image, o.Entries); err != nil {
		return err
	}
	before, err := look(o.Target)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	cmd := exec.CommandContext(ctx, "/proc/self/exe", confineCommand, o.Program, o.Image, o.Target, strconv.FormatInt(o.Bytes, 10))
	var out bytes.Buffer
	cmd.Env = []string{"LC_ALL=C"}
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = nil, &out
	cmd.WaitDelay = 5 * time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC,
		Setpgid:    true,
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start unsquashfs: %w", err)
	}
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		w := watcher{o: o, before: before, process: cmd.Process}
		if err := w.watch(ctx); err != nil {
			cancel(err)
		}
	}()
	err = cmd.Wait()
	cause := context.Cause(ctx)
	cancel(nil)
	<-watched
	var exit *exec.ExitError
	switch {
	case cause != nil:
		return cause
	case err == nil:
		return nil
	case errors.As(err, &exit) && exit.ExitCode() == exitConfine:
		return fmt.Errorf("confine unsquashfs: %s", strings.TrimSpace(out.String()))
	case errors.As(err, &exit) && exit.ExitCode() == exitNonFatal && onlyDevices(out.String()):
		return nil
	case errors.As(err, &exit) && strings.Contains(out.String(), "No space left on device"):
		return fmt.Errorf("run unsquashfs: %w", unix.ENOSPC)
	case errors.As(err, &exit) && strings.Contains(out.String(), "File too large"):
		return &Error{Reason: fmt.Sprintf("a file in it is larger than %d bytes", o.Bytes)}
	case errors.As(err, &exit):
		return &Error{Reason: firstLine(out.String(), err)}
	}
	return fmt.Errorf("run unsquashfs: %w", err)
}

// exitNonFatal is the status of unsquashfs 4.5 and later when something could not be written.
const exitNonFatal = 2

// onlyDevices tells whether all complaints are about device nodes, which the
// process may not make and a guest could not use.
func onlyDevices(out string) bool {
	for line := range strings.Lines(out) {
		line = strings.TrimSpace(line)
		if line != "" && !strings.Contains(line, "character device") && !strings.Contains(line, "block device") &&
			!strings.Contains(line, "because you're not superuser") {
			return false
		}
	}
	return true
}

func firstLine(out string, err error) string {
	line, _, _ := strings.Cut(strings.TrimSpace(out), "\n")
	if line == "" {
		return err.Error()
	}
	return line[:min(len(line), 300)]
}
