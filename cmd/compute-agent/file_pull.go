package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/compute-agent/compute-agent/config"
	"github.com/compute-agent/compute-agent/internal/guestfile"
)

func newFilePullCommand() *cobra.Command {
	var sources config.Sources
	var p puller
	cmd := &cobra.Command{
		Use:   "pull [flags] SERVER/PATH... FILE",
		Short: "Copy files out of a running server",
		Long: `Copy files out of a running server. "-" is standard output. If FILE is a directory or ends with a slash, the files get
their own names in it.

What is copied belongs to the caller and keeps its permissions, but for setuid and setgid. A file that is there is replaced
when the copy is complete. With --recursive links stay links; be careful with them, they lead where the server wants.`,
		Example: `  compute-agent file pull instance-0000002a/var/log/syslog .
  compute-agent file pull 3f8f5f9e/etc/passwd - | cut -d: -f1
  compute-agent file pull -r 3f8f5f9e/var/log logs-of-3f8f5f9e`,
		Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			p.stdout, p.warn = cmd.OutOrStdout(), cmd.ErrOrStderr()
			last := len(args) - 1
			target, into, err := p.target(args[last], last > 1)
			if err != nil {
				return err
			}
			p.bars = newBars(target != "-")
			defer p.bars.wait()
			for _, word := range args[:last] {
				server, name, err := splitGuestPath(word)
				if err != nil {
					return err
				}
				root, err := openGuest(cmd.Context(), sources, server)
				if err != nil {
					return err
				}
				to := target
				if into {
					to = filepath.Join(target, localBase(server, name))
				}
				if err := errors.Join(p.pull(cmd.Context(), root, name, to), root.Close()); err != nil {
					return err
				}
			}
			return nil
		},
	}
	addConfigFlags(cmd, &sources)
	cmd.Flags().BoolVarP(&p.recursive, "recursive", "r", false, "copy directories with all that is in them")
	cmd.Flags().BoolVarP(&p.parents, "create-dirs", "p", false, "make the directories that FILE is in")
	return cmd
}

// localBase is what a path of a server is called here: the server's root directory is called as the server.
func localBase(server, name string) string {
	if base := path.Base(path.Clean(name)); base != "/" {
		return base
	}
	return server
}

// puller is one run of "file pull".
type puller struct {
	recursive bool
	parents   bool
	stdout    io.Writer
	warn      io.Writer
	bars      *bars
}

// target tells where the files go, and whether that is a directory for them.
func (p *puller) target(file string, several bool) (target string, into bool, err error) {
	if file == "-" {
		if several || p.recursive {
			return "", false, errors.New("standard output takes one file")
		}
		return file, false, nil
	}
	info, err := os.Stat(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", false, err
	}
	into = err == nil && info.IsDir() || several || strings.HasSuffix(file, "/")
	if p.parents {
		dir := file
		if !into {
			dir = filepath.Dir(file)
		}
		if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // as mkdir -p makes them
			return "", false, err
		}
	}
	return file, into, nil
}

// pull copies what the user has named: links in that are followed.
func (p *puller) pull(ctx context.Context, root *guestfile.Root, name, target string) error {
	info, err := root.Stat(name)
	if err != nil {
		return err
	}
	if info.Mode.IsDir() {
		if !p.recursive {
			return fmt.Errorf("%q is a directory: use --recursive", name)
		}
		return p.tree(ctx, root, name, target)
	}
	f, info, err := root.Open(name)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // only read
	out, err := p.output(target, info.Mode.Perm())
	if err != nil {
		return err
	}
	if err := p.copy(ctx, out, f, info, path.Base(name)); err != nil {
		return errors.Join(err, out.discard())
	}
	return out.commit()
}

// output opens what a file is copied to.
func (p *puller) output(target string, perm fs.FileMode) (output, error) {
	if target == "-" {
		return &stream{Writer: p.stdout}, nil
	}
	info, err := os.Stat(target)
	switch {
	case err == nil && info.IsDir():
		return nil, fmt.Errorf("%s is a directory", target)
	case err == nil && !info.Mode().IsRegular(): // a device or a pipe is written to, and not replaced
		f, err := os.OpenFile(target, os.O_WRONLY, 0)
		if err != nil {
			return nil, err
		}
		return &opened{f}, nil
	case err == nil:
		if target, err = filepath.EvalSymlinks(target); err != nil {
			return nil, err
		}
	}
	f, err := createFile(target, true)
	if err != nil {
		return nil, err
	}
	if err := f.Chmod(perm); err != nil {
		return nil, errors.Join(err, f.discard())
	}
	return f, nil
}

// opened is an output that was there before.
type opened struct{ *os.File }

func (o *opened) commit() error  { return o.Close() }
func (o *opened) discard() error { return o.Close() }

// copy copies as much as a file had when it was opened: one that grows has no end.
func (p *puller) copy(ctx context.Context, to io.Writer, from io.Reader, info guestfile.Info, name string) error {
	bar := p.bars.add(printable(name), info.Size)
	_, err := io.Copy(to, bar.reader(interruptible{ctx, io.LimitReader(from, info.Size)}))
	bar.end(err == nil)
	if err != nil {
		return fmt.Errorf("copy %q: %w", name, err)
	}
	return nil
}

// tree copies a directory. The server chooses names and links: nothing here is named but beneath the target.
func (p *puller) tree(ctx context.Context, root *guestfile.Root, name, target string) error {
	if err := os.MkdirAll(target, 0o755); err != nil { //nolint:gosec // as cp makes it
		return err
	}
	local, err := os.OpenRoot(target)
	if err != nil {
		return err
	}
	defer local.Close() //nolint:errcheck // nothing was written
	return root.Walk(name, func(e *guestfile.Entry) error {
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case e.Skipped != nil:
			_, err := fmt.Fprintf(p.warn, "skipped %q: %v\n", path.Join(name, e.Name), e.Skipped)
			return err
		case e.Name == ".":
			return nil
		case e.Mode.IsDir():
			return directory(local, e)
		case e.Mode&fs.ModeSymlink != 0:
			return inPlace(local, e.Name, func(temporary string) error { return local.Symlink(e.Link, temporary) })
		}
		return inPlace(local, e.Name, func(temporary string) error { return p.file(ctx, local, temporary, e) })
	})
}

func directory(local *os.Root, e *guestfile.Entry) error {
	info, err := local.Lstat(e.Name)
	switch {
	case err == nil && info.IsDir():
		return nil
	case err == nil:
		return fmt.Errorf("make directory %q: there is something else", e.Name)
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if err := local.Mkdir(e.Name, 0o700); err != nil {
		return err
	}
	return local.Chmod(e.Name, e.Mode.Perm())
}

// inPlace has something made under another name and gives it its own when it is complete.
func inPlace(local *os.Root, name string, make func(temporary string) error) error {
	temporary := path.Join(path.Dir(name), ".pull."+rand.Text())
	err := make(temporary)
	if err == nil {
		err = local.Rename(temporary, name)
	}
	if err != nil {
		if remove := local.Remove(temporary); !errors.Is(remove, fs.ErrNotExist) {
			err = errors.Join(err, remove)
		}
	}
	return err
}

func (p *puller) file(ctx context.Context, local *os.Root, name string, e *guestfile.Entry) error {
	from, err := e.Open()
	if err != nil {
		return err
	}
	defer from.Close() //nolint:errcheck // only read
	to, err := local.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err := p.copy(ctx, to, from, e.Info, e.Name); err != nil {
		return errors.Join(err, to.Close())
	}
	return errors.Join(to.Chmod(e.Mode.Perm()), to.Close())
}
