package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/compute-agent/compute-agent/config"
	"github.com/compute-agent/compute-agent/internal/guestfile"
)

func newFilePushCommand() *cobra.Command {
	var sources config.Sources
	var uid, gid uint32
	var mode string
	var p pusher
	cmd := &cobra.Command{
		Use:   "push [flags] FILE... SERVER/PATH",
		Short: "Copy files into a running server",
		Long: `Copy files into a running server. "-" is standard input. If PATH is a directory or ends with a slash, the files get
their own names in it.

A new file is root's and has the mode of its source; one that is replaced keeps its owner and its mode. --uid, --gid and
--mode say otherwise. The server sees a file when it is complete, and keeps the old one if the copy fails.`,
		Example: `  compute-agent file push hosts instance-0000002a/etc/hosts
  compute-agent file push --uid 1000 --gid 1000 --mode 600 id_ed25519 3f8f5f9e/home/debian/.ssh/
  compute-agent file push -r site/ 3f8f5f9e/var/www
  date | compute-agent file push -p - 3f8f5f9e/var/lib/probe/seen`,
		Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if cmd.Flags().Changed("uid") {
				p.attributes.UID = &uid
			}
			if cmd.Flags().Changed("gid") {
				p.attributes.GID = &gid
			}
			if p.attributes.Mode, err = parseMode(mode); err != nil {
				return err
			}
			last := len(args) - 1
			server, target, err := splitGuestPath(args[last])
			if err != nil {
				return err
			}
			if p.root, err = openGuest(cmd.Context(), sources, server); err != nil {
				return err
			}
			p.stdin, p.warn = cmd.InOrStdin(), cmd.ErrOrStderr()
			p.bars = newBars(true)
			err = p.push(cmd.Context(), args[:last], target)
			p.bars.wait()
			return errors.Join(err, p.root.Close())
		},
	}
	addConfigFlags(cmd, &sources)
	cmd.Flags().Uint32Var(&uid, "uid", 0, "owner, by the server's user ids")
	cmd.Flags().Uint32Var(&gid, "gid", 0, "group, by the server's group ids")
	cmd.Flags().StringVar(&mode, "mode", "", "mode of the files, in octal")
	cmd.Flags().BoolVarP(&p.recursive, "recursive", "r", false, "copy directories with all that is in them; links stay links")
	cmd.Flags().BoolVarP(&p.parents, "create-dirs", "p", false, "make the directories that PATH is in")
	return cmd
}

// parseMode reads an octal mode; nil: none was given.
func parseMode(text string) (*uint32, error) {
	if text == "" {
		return nil, nil //nolint:nilnil // none
	}
	mode, err := strconv.ParseUint(text, 8, 32)
	if err != nil || mode > 0o7777 {
		return nil, fmt.Errorf("mode %q is not an octal number up to 7777", text)
	}
	small := uint32(mode)
	return &small, nil
}

// pusher is one run of "file push".
type pusher struct {
	root       *guestfile.Root
	attributes guestfile.Attributes
	recursive  bool
	parents    bool
	stdin      io.Reader
	warn       io.Writer
	bars       *bars
}

func (p *pusher) push(ctx context.Context, files []string, target string) error {
	info, err := p.root.Stat(target)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	into := err == nil && info.Mode.IsDir() || strings.HasSuffix(target, "/") || len(files) > 1
	if p.parents {
		dir := target
		if !into {
			dir = path.Dir(target)
		}
		if err := p.root.MkdirAll(dir); err != nil {
			return err
		}
	}
	for _, file := range files {
		name := target
		if into {
			if file == "-" {
				return fmt.Errorf("standard input has no name: give one of a file, and not the directory %s", target)
			}
			full, err := filepath.Abs(file) // "." has a name, too
			if err != nil {
				return err
			}
			name = path.Join(target, filepath.Base(full))
		}
		if err := p.one(ctx, file, name); err != nil {
			return err
		}
	}
	return nil
}

// one copies what the user has named: links in that are followed.
func (p *pusher) one(ctx context.Context, file, name string) error {
	if file == "-" {
		in, done := untilDone(ctx, p.stdin)
		defer done()
		return p.stream(ctx, in, -1, name, 0o644)
	}
	info, err := os.Stat(file)
	switch {
	case err != nil:
		return err
	case !info.IsDir():
		return p.file(ctx, file, name)
	case !p.recursive:
		return fmt.Errorf("%s is a directory: use --recursive", file)
	}
	return filepath.WalkDir(file, func(at string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(file, at)
		if err != nil {
			return err
		}
		return p.entry(ctx, at, path.Join(name, filepath.ToSlash(rel)), entry, rel == ".")
	})
}

// entry copies something of a directory.
func (p *pusher) entry(ctx context.Context, file, name string, entry fs.DirEntry, top bool) error {
	owner := guestfile.Attributes{UID: p.attributes.UID, GID: p.attributes.GID} // --mode is for files
	switch {
	case entry.IsDir() || top:
		info, err := os.Stat(file)
		if err != nil {
			return err
		}
		return p.root.Mkdir(name, info.Mode().Perm(), owner)
	case entry.Type() == fs.ModeSymlink:
		target, err := os.Readlink(file)
		if err != nil {
			return err
		}
		return p.root.Symlink(target, name, owner)
	case entry.Type().IsRegular():
		return p.file(ctx, file, name)
	}
	_, err := fmt.Fprintf(p.warn, "skipped %q: %v\n", file, guestfile.ErrNotRegular)
	return err
}

func (p *pusher) file(ctx context.Context, file, name string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // only read
	info, err := f.Stat()
	if err != nil {
		return err
	}
	return p.stream(ctx, f, info.Size(), name, info.Mode().Perm())
}

func (p *pusher) stream(ctx context.Context, from io.Reader, size int64, name string, perm fs.FileMode) error {
	w, err := p.root.Create(name, perm, p.attributes)
	if err != nil {
		return err
	}
	bar := p.bars.add(path.Base(name), size)
	_, err = io.Copy(w, bar.reader(interruptible{ctx, from}))
	bar.end(err == nil)
	if err != nil {
		return errors.Join(fmt.Errorf("write %q: %w", name, err), w.Discard())
	}
	return w.Commit()
}
