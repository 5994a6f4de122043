package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"

	"github.com/spf13/cobra"

	"github.com/compute-agent/compute-agent/config"
	"github.com/compute-agent/compute-agent/driver"
	"github.com/compute-agent/compute-agent/internal/guestfile"
)

// newFileCommand returns "compute-agent file" with its sub-commands.
func newFileCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "file",
		Short: "Copy files to and from a running server of this node",
		Long: `Copy files to and from a running server of this node. The server needs no program for it, and no network.

SERVER is the server's UUID, its beginning, or its instance name. A PATH is one as the server sees it: links are followed
inside the server and lead nowhere else. What is not a file (devices, sockets, all of /proc and /sys) is not copied.`,
		Example: `  compute-agent file pull instance-0000002a/var/log/syslog .
  compute-agent file push hosts instance-0000002a/etc/hosts`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newFilePushCommand(), newFilePullCommand())
	return cmd
}

// splitGuestPath takes SERVER/PATH apart.
func splitGuestPath(word string) (server, path string, err error) {
	server, path, ok := strings.Cut(word, "/")
	if !ok || server == "" {
		return "", "", fmt.Errorf("%q is not SERVER/PATH, such as instance-0000002a/etc/hosts", word)
	}
	return server, "/" + path, nil
}

// openGuest opens the root directory of a server.
func openGuest(ctx context.Context, sources config.Sources, word string) (*guestfile.Root, error) {
	c, _, err := config.Load(sources)
	if err != nil {
		return nil, err
	}
	d, err := openGuests(c)
	if err != nil {
		return nil, err
	}
	server, err := findServer(ctx, d, word)
	if err != nil {
		return nil, err
	}
	opener, ok := d.(driver.RootOpener)
	if !ok {
		return nil, driver.ErrUnsupported
	}
	dir, err := opener.OpenRoot(ctx, server.UUID)
	if errors.Is(err, driver.ErrNotRunning) {
		return nil, fmt.Errorf("%s is shut down, and its files are not to be reached until it runs: openstack server start %s", server.Name, server.UUID)
	}
	if err != nil {
		return nil, err
	}
	ids := guestfile.IDs{Base: server.IDs.Base, Count: server.IDs.Size}
	if server.Limits.Privileged {
		ids = guestfile.IDs{Count: math.MaxUint32} // the host's own
	}
	return guestfile.New(dir, ids), nil
}

// interruptible is a reader that ends with a context.
type interruptible struct {
	ctx context.Context //nolint:containedctx // lives for one copy
	r   io.Reader
}

// Read implements io.Reader.
func (i interruptible) Read(b []byte) (int, error) {
	if i.ctx.Err() != nil {
		return 0, context.Cause(i.ctx)
	}
	return i.r.Read(b)
}

// untilDone reads what may never come, such as what somebody types, until the context ends. A read that waits then is left behind: the
// process is about to end.
func untilDone(ctx context.Context, r io.Reader) (io.Reader, func()) {
	pr, pw := io.Pipe()
	go func() {
		_, err := io.Copy(pw, r)
		_ = pw.CloseWithError(err) // always nil
	}()
	stop := context.AfterFunc(ctx, func() { _ = pw.CloseWithError(context.Cause(ctx)) })
	return pr, func() { stop(); _ = pr.Close() }
}
