//go:build functional

package unsquash

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

var errTooLarge = errors.New("too large")

// ownFileSystem puts the target on a file system to which nobody else writes.
func ownFileSystem(t *testing.T, o *Options) {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, unix.Mount("none", dir, "tmpfs", 0, "size=256m,nr_inodes=1m"))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, 0)) })
	o.Target = filepath.Join(dir, "tree")
	require.NoError(t, os.Mkdir(o.Target, 0o755))
}

// count is for goroutines other than the test's as well, so it fails no test; -1 is nothing's number.
func count(dir string) int {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return -1
	}
	return len(entries)
}

// TestWatch: a program that writes without end is ended soon after the limit, and stands still while the tree is looked at.
func TestWatch(t *testing.T) {
	for name, c := range map[string]struct {
		script  string
		entries int
		bytes   int64
		most    int // files that it may get to, at the speed of a shell
	}{
		"files":       {`while :; do : > $dest/$((i++)); done`, 1000, 1 << 30, 200_000},
		"directories": {`while :; do mkdir $dest/$((i++)); done`, 100, 1 << 30, 20_000},
		"bytes":       {`while :; do i=$((i+1)); head -c 1000000 /bin/bash > $dest/$i; done`, 100, 8 << 20, 200},
	} {
		t.Run(name, func(t *testing.T) {
			o := setUp(t)
			ownFileSystem(t, &o)
			o.Program, o.Entries, o.Bytes = program(t, c.script), c.entries, c.bytes
			judged := 0
			o.Judge = func(ctx context.Context) error {
				judged++
				tick := time.NewTicker(100 * time.Millisecond) // a call under way may have to wait for a processor
				defer tick.Stop()
				before := count(o.Target)
				for last := -1; last != before && ctx.Err() == nil; before = count(o.Target) { // what is under way ends
					last = before
					<-tick.C
				}
				for range 5 {
					<-tick.C
					assert.Equal(t, before, count(o.Target), "it stands still")
				}
				return errTooLarge
			}
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			require.ErrorIs(t, Run(ctx, o), errTooLarge)
			require.Equal(t, 1, judged)
			got := count(o.Target)
			t.Logf("%d files", got)
			require.Less(t, got, c.most)
			if c.bytes < 1<<30 {
				require.Greater(t, int64(got)*1_000_000, c.bytes)
			} else {
				require.Greater(t, got, c.entries)
			}
		})
	}
}

// TestOtherWriters: what others write to the file system ends no run, and a run beside them is looked at again.
func TestOtherWriters(t *testing.T) {
	o := setUp(t)
	ownFileSystem(t, &o)
	o.Program, o.Entries = program(t, "until [ -e $dest/end ]; do sleep 0.05; done; echo done > $dest/done"), 100
	judged := 0
	o.Judge = func(context.Context) error {
		if judged++; judged == 3 {
			return os.WriteFile(filepath.Join(o.Target, "end"), nil, 0o600)
		}
		return nil
	}
	other := filepath.Join(filepath.Dir(o.Target), "other")
	require.NoError(t, os.Mkdir(other, 0o755))
	stop, stopped := make(chan struct{}), make(chan error, 1)
	go func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				stopped <- nil
				return
			case <-time.After(time.Millisecond):
			}
			if err := os.WriteFile(filepath.Join(other, strconv.Itoa(i)), nil, 0o600); err != nil {
				stopped <- err
				return
			}
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	err := Run(ctx, o)
	close(stop)
	require.NoError(t, errors.Join(err, <-stopped))
	require.FileExists(t, filepath.Join(o.Target, "done"))
	require.GreaterOrEqual(t, judged, 3)
}

// TestSuperblock: what the image says of itself is believed when it is too much.
func TestSuperblock(t *testing.T) {
	o := setUp(t)
	o.Program, o.Entries = program(t, "touch $dest/ran"), 1000
	for name, c := range map[string]struct {
		head []byte
		want string // empty: it runs
	}{
		"just enough":   {superblock(1001, superblockSize), ""},
		"one more":      {superblock(1002, superblockSize), "its superblock tells of 1001 entries, more than the limit of 1000"},
		"most":          {superblock(1<<32-1, superblockSize), "4294967294 entries"},
		"no inodes":     {superblock(0, superblockSize), ""}, // the program's to refuse
		"too long":      {superblock(2, superblockSize+1), "of the 97 bytes that its superblock tells of, 96 are there"},
		"endless":       {superblock(2, 1<<64-1), "it is cut off"},
		"other version": {append(superblock(2, 0)[:28], append([]byte{3, 0}, make([]byte, 66)...)...), ""},
		"empty":         {nil, "cut off after 0 bytes"},
		"short":         {superblock(2, 0)[:95], "cut off after 95 bytes"},
	} {
		require.NoError(t, os.WriteFile(o.Image, c.head, 0o600))
		err := Run(t.Context(), o)
		ran := os.Remove(filepath.Join(o.Target, "ran"))
		if c.want == "" {
			require.NoError(t, errors.Join(err, ran), name)
			continue
		}
		var bad *Error
		require.ErrorAs(t, err, &bad, name)
		require.ErrorContains(t, err, c.want, name)
		require.ErrorIs(t, ran, os.ErrNotExist, name)
	}
	o.Image += ".none"
	require.ErrorIs(t, Run(t.Context(), o), os.ErrNotExist)
}
