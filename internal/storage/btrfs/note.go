package btrfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// identity tells an image from the same one fetched again, which the store puts in its place when it cannot know whether the first is whole:
// what was made of that is not to be used any more either.
func identity(image string) (string, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, image, 0, unix.STATX_INO|unix.STATX_BTIME, &st); err != nil {
		return "", fmt.Errorf("look at image %s: %w", image, err)
	}
	return fmt.Sprintf("%d %d.%09d", st.Ino, st.Btime.Sec, st.Btime.Nsec), nil
}

// note records which image a key is of, before there is anything under that key.
func (b *Backend) note(image, id string) error {
	return os.WriteFile(filepath.Join(b.images, key(image)+noteSuffix), []byte(image+"\n"+id), 0o600)
}

// noted reads a note. One that was written before there were identities has none.
func noted(file string) (image, id string, err error) {
	text, err := os.ReadFile(file)
	image, id, _ = strings.Cut(string(text), "\n")
	return image, id, err
}

// dropStale removes what was made of an image that another one has taken the place of, and gives the identity of that. The key is locked.
func (b *Backend) dropStale(image string) (id string, err error) {
	if id, err = identity(image); err != nil {
		return "", err
	}
	note := filepath.Join(b.images, key(image)+noteSuffix)
	_, had, err := noted(note)
	if errors.Is(err, os.ErrNotExist) {
		return id, nil
	}
	if err != nil || had == id || had == "" {
		return id, err
	}
	return id, b.drop(note, key(image))
}

// drop removes what was made of an image, and then its note. The root disks made from it stay as they are.
func (b *Backend) drop(note, name string) error {
	files, err := filepath.Glob(filepath.Join(b.images, name+"-*"+fileSuffix))
	errs := []error{err, destroy(filepath.Join(b.images, name))}
	for _, f := range files {
		errs = append(errs, os.Remove(f))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return os.Remove(note)
}

// prune drops what was made of images that the store has no more.
func (b *Backend) prune(ctx context.Context) error {
	notes, err := filepath.Glob(filepath.Join(b.images, "*"+noteSuffix))
	errs := []error{err}
	for _, note := range notes {
		errs = append(errs, b.pruneOne(ctx, note))
	}
	return errors.Join(errs...)
}

func (b *Backend) pruneOne(ctx context.Context, note string) error {
	image, _, err := noted(note)
	if err != nil {
		return err
	}
	if _, err := os.Stat(image); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	unlock, err := b.making.Lock(ctx, key(image))
	if err != nil {
		return err
	}
	defer unlock()
	return b.drop(note, key(image))
}
