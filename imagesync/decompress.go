package imagesync

import (
	"bytes"
	"compress/bzip2"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

const (
	// zstdWindow is the largest that `zstd -d` takes without an option; frames
	// that want more are made with --long and would take as much memory.
	zstdWindow = 128 << 20
	// xzMemory bounds the child: `xz -9` needs 65 MiB a thread.
	xzMemory = "512MiB"
	// pipeSize saves switches between the processes; what the kernel allows a user by default.
	pipeSize = 1 << 20
	// nobody runs decompressors when the agent is root.
	nobody = 65534
)

// decompress gives the content of a compressed stream. Close must be called; its
// error tells what the decompressor had to say, a *refused when the stream is damaged.
func (s *Store) decompress(ctx context.Context, f format, in io.Reader) (io.ReadCloser, error) {
	switch f {
	case formatGzip:
		z, err := gzip.NewReader(in)
		if err != nil {
			return nil, damaged("gzip", err)
		}
		return &inProcess{name: "gzip", r: z, close: func() {}}, nil
	case formatZstd:
		z, err := zstd.NewReader(in, zstd.WithDecoderMaxWindow(zstdWindow), zstd.WithDecoderLowmem(true), zstd.WithDecoderConcurrency(2))
		if err != nil {
			return nil, damaged("zstd", err)
		}
		return &inProcess{name: "zstd", r: z, close: z.Close}, nil
	case formatBzip2:
		return &inProcess{name: "bzip2", r: bzip2.NewReader(in), close: func() {}}, nil
	case formatXZ:
		return startChild(ctx, in, s.o.XZ, "-dc", "-T0", "--memlimit-decompress="+xzMemory)
	default: // not compressed
		return io.NopCloser(in), nil
	}
}

// inProcess is a decompressor of this process. It marks its own errors, so that
// they can be told from those of the stream beneath.
type inProcess struct {
	name  string
	r     io.Reader
	close func()
}

// Read implements io.Reader.
func (d *inProcess) Read(p []byte) (int, error) {
	n, err := d.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = damaged(d.name, err)
	}
	return n, err
}

// Close implements io.Closer.
func (d *inProcess) Close() error {
	d.close()
	return nil
}

func damaged(name string, err error) error {
	return &refused{found: fmt.Sprintf("a damaged %s file (%s)", name, strings.TrimPrefix(err.Error(), name+": ")), want: acceptable}
}

// child is a decompressor in a process of its own: another memory, another user.
type child struct {
	name   string
	cmd    *exec.Cmd
	stdout *os.File
	stderr bytes.Buffer
	fed    chan struct{} // closed when nothing is read from the input any more
	ended  bool          // stdout has been read to its end
}

func startChild(ctx context.Context, in io.Reader, path string, args ...string) (*child, error) {
	c := &child{name: path[strings.LastIndexByte(path, '/')+1:], fed: make(chan struct{})}
	c.cmd = exec.CommandContext(ctx, path, args...)
	c.cmd.Env = []string{"LC_ALL=C"}
	c.cmd.Dir = "/"
	c.cmd.WaitDelay = 5 * time.Second
	c.cmd.Stderr = &limitedWriter{w: &c.stderr, left: 4096}
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if os.Geteuid() == 0 {
		c.cmd.SysProcAttr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody}
	}
	stdin, err := c.cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", c.name, err)
	}
	stdout, childOut, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", c.name, err)
	}
	_, _ = unix.FcntlInt(stdout.Fd(), unix.F_SETPIPE_SZ, pipeSize) // smaller is slower, no more
	c.cmd.Stdout, c.stdout = childOut, stdout
	err = c.cmd.Start()
	_ = childOut.Close()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", c.name, err), stdin.Close(), stdout.Close())
	}
	go c.feed(stdin, in)
	return c, nil
}

// feed ends when the input ends or the child does. Errors of the input are kept by
// the input itself, those of the pipe show in the child's exit status.
func (c *child) feed(stdin io.WriteCloser, in io.Reader) {
	defer close(c.fed)
	defer stdin.Close() //nolint:errcheck // shows in the exit status
	_, _ = io.CopyBuffer(struct{ io.Writer }{stdin}, struct{ io.Reader }{in}, make([]byte, 128<<10))
}

// Read implements io.Reader.
func (c *child) Read(p []byte) (int, error) {
	n, err := c.stdout.Read(p)
	c.ended = c.ended || errors.Is(err, io.EOF)
	return n, err
}

// Close waits for the child. When its output was not read to the end, it dies of
// the closed pipe and its status means nothing.
func (c *child) Close() error {
	_ = c.stdout.Close()
	err := c.cmd.Wait()
	<-c.fed
	if err == nil || !c.ended {
		return nil
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Exited() {
		return damaged(c.name, errors.New(strings.TrimSpace(c.stderr.String())))
	}
	return fmt.Errorf("run %s: %w", c.name, err)
}

// limitedWriter drops what goes beyond its limit.
type limitedWriter struct {
	w    io.Writer
	left int
}

// Write implements io.Writer.
func (l *limitedWriter) Write(p []byte) (int, error) {
	keep := p[:min(len(p), l.left)]
	l.left -= len(keep)
	if _, err := l.w.Write(keep); err != nil {
		return 0, err
	}
	return len(p), nil
}
