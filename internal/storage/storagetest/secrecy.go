package storagetest

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/internal/storage"
)

// nextTenant: what one tenant wrote, the next one, who gets the same blocks of the host's disk, does not read. The pool is
// so small that there are no others. It is for back ends that do with any file system.
func (s suite) nextTenant(t *testing.T, e Environment, _ storage.Backend) {
	const megabytes = 60
	dir := filepath.Join(filepath.Dir(e.Dir), "small")
	SmallFileSystem(t, dir, 2*megabytes)
	e.Dir = filepath.Join(dir, "roots")
	b, err := s.Open(e.Dir)
	require.NoError(t, err)
	secret := []byte("the first tenant's secret ")
	first := up(t, b, root(e, "first", 0, 1))
	require.NoError(t, os.WriteFile(filepath.Join(first, "secret"), bytes.Repeat(secret, megabytes<<20/len(secret)), 0o600))
	unix.Sync()
	require.True(t, holds(t, dir, secret), "the pool's blocks hold it")
	require.NoError(t, b.Delete(t.Context(), "first"))
	runUntilEmpty(t, b, e)

	second := up(t, b, root(e, "second", 1, 1))
	path := filepath.Join(second, "mine")
	mine, err := os.Create(path)
	require.NoError(t, err)
	require.NoError(t, unix.Fallocate(int(mine.Fd()), 0, 0, megabytes<<20))
	require.NoError(t, mine.Close())
	got, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Len(t, got, megabytes<<20)
	require.False(t, bytes.Contains(got, secret), "blocks given to the second tenant are empty")
	require.False(t, holds(t, dir, secret), "nor is it in a file of the pool")
}

// holds tells whether a file below dir holds the text.
func holds(t *testing.T, dir string, text []byte) bool {
	t.Helper()
	found := false
	require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || found || !d.Type().IsRegular() {
			return err
		}
		found, err = fileHolds(path, text)
		return err
	}))
	return found
}

// fileHolds reads in pieces: the file of a root disk is as large as the disk.
func fileHolds(path string, text []byte) (bool, error) {
	file, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer file.Close() //nolint:errcheck // it was only read
	piece := make([]byte, 0, 1<<20)
	for {
		n, err := file.Read(piece[len(piece):cap(piece)])
		piece = piece[:len(piece)+n]
		if bytes.Contains(piece, text) {
			return true, nil
		}
		if errors.Is(err, io.EOF) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		piece = piece[:copy(piece, piece[max(0, len(piece)-len(text)):])] // it may go on in the next one
	}
}
