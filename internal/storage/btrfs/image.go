package btrfs

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/compute-agent/compute-agent/internal/storage/ext4"
	"github.com/compute-agent/compute-agent/internal/storage/mount"
	"github.com/compute-agent/compute-agent/internal/storage/pool"
	"github.com/compute-agent/compute-agent/internal/storage/treecopy"
)

const (
	// noteSuffix ends the name of the file that tells which image a key is of.
	noteSuffix = ".path"
	// fileSuffix ends the name of a file with an image.
	fileSuffix = ".img"
)

// key names what is made of an image. Images are stored under a name of their content, so that a path never changes
// what it means; but see identity.
func key(image string) string {
	sum := sha256.Sum256([]byte(image))
	return hex.EncodeToString(sum[:16])
}

// fromFile makes the file of a root disk: a clone of the image's of that size, which is made if it is not there.
func (b *Backend) fromFile(ctx context.Context, image string, sizeGB int, disk string) error {
	name := key(image)
	unlock, err := b.making.Lock(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	id, err := b.dropStale(image)
	if err != nil {
		return err
	}
	source := b.file(name, sizeGB)
	if _, err := os.Stat(source); errors.Is(err, os.ErrNotExist) {
		if err := b.makeFile(ctx, image, id, sizeGB); err != nil {
			return fmt.Errorf("bring image into the pool: %w", err)
		}
	} else if err != nil {
		return err
	}
	return ext4.Copy(ctx, source, disk)
}

func (b *Backend) file(name string, sizeGB int) string {
	return filepath.Join(b.images, name+"-"+strconv.Itoa(sizeGB)+fileSuffix)
}

// makeFile makes the file system of an image for root disks of one size: from a smaller one of the image, whose blocks
// it shares, or by a copy of the image. A crash leaves it to the pool, which wipes what is half made.
func (b *Backend) makeFile(ctx context.Context, image, id string, sizeGB int) error {
	scratch, err := b.Pool.Scratch()
	if err != nil {
		return err
	}
	half := filepath.Join(scratch, pool.DiskFile)
	smaller, err := b.smaller(key(image), sizeGB)
	content := func(string) error { return nil }
	switch {
	case err != nil:
	case smaller != "":
		if err = ext4.Copy(ctx, smaller, half); err == nil {
			err = ext4.Grow(ctx, half, sizeGB)
		}
	default:
		err = ext4.Create(ctx, half, ext4.Format{SizeGB: sizeGB, InodesPerGB: b.inodesPerGB})
		content = func(root string) error { return treecopy.Copy(ctx, image, root, treecopy.AsIs) }
	}
	if err == nil {
		err = fill(ctx, half, filepath.Join(scratch, pool.RootfsDir), sizeGB, content)
	}
	if err == nil {
		err = errors.Join(b.note(image, id), flush(half))
	}
	if err == nil {
		err = os.Rename(half, b.file(key(image), sizeGB))
	}
	return errors.Join(err, os.RemoveAll(scratch))
}

// fill mounts a file system at point for content to be written.
func fill(ctx context.Context, file, point string, sizeGB int, content func(root string) error) error {
	if err := mount.Point(point); err != nil {
		return err
	}
	if err := ext4.Mount(ctx, file, point, sizeGB); err != nil {
		return err
	}
	// mkfs puts it there, and e2fsck before a file system grows; it is not the image's.
	err := os.Remove(filepath.Join(point, "lost+found"))
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	if err == nil {
		err = content(point)
	}
	if err != nil {
		return errors.Join(err, ext4.Shutdown(file), mount.Detach(point))
	}
	return mount.Unmount(ctx, point)
}

// smaller finds the largest file of an image that is below a size; "": there is none.
func (b *Backend) smaller(name string, sizeGB int) (string, error) {
	files, err := filepath.Glob(filepath.Join(b.images, name+"-*"+fileSuffix))
	if err != nil {
		return "", err
	}
	best, path := 0, ""
	for _, f := range files {
		size := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(f), name+"-"), fileSuffix)
		if n, err := strconv.Atoi(size); err == nil && n < sizeGB && n > best {
			best, path = n, f
		}
	}
	return path, nil
}

// flush has a file on disk before it gets its name: that outlives a power cut, and so must its content.
func flush(path string) error {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(file.Sync(), file.Close())
}

// fromSubvolume makes the snapshot of a root disk without a size. The image's subvolume is made if it is not there.
func (b *Backend) fromSubvolume(ctx context.Context, image, disk string) error {
	name := key(image)
	unlock, err := b.making.Lock(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	id, err := b.dropStale(image)
	if err != nil {
		return err
	}
	source := filepath.Join(b.images, name)
	if _, err := os.Stat(source); errors.Is(err, os.ErrNotExist) {
		if err := b.makeSubvolume(ctx, image, id, source); err != nil {
			return fmt.Errorf("bring image into the pool: %w", err)
		}
	} else if err != nil {
		return err
	}
	return snapshot(source, disk)
}

// makeSubvolume copies an image into a subvolume; on the same file system the copy shares the blocks.
func (b *Backend) makeSubvolume(ctx context.Context, image, id, target string) error {
	half := filepath.Join(b.images, ".new-"+rand.Text())
	if err := createSubvolume(half); err != nil {
		return err
	}
	err := treecopy.Copy(ctx, image, half, treecopy.AsIs)
	if err == nil {
		err = b.note(image, id)
	}
	if err == nil {
		err = os.Rename(half, target)
	}
	if err != nil {
		return errors.Join(err, destroy(half))
	}
	return nil
}

// wipe takes away what a crash left of a subvolume that was being made.
func (b *Backend) wipe() error {
	half, err := filepath.Glob(filepath.Join(b.images, ".new-*"))
	for _, path := range half {
		err = errors.Join(err, destroy(path))
	}
	return err
}
