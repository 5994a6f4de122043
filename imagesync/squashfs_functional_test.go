//go:build functional

package imagesync

import (
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/internal/functest"
)

// makeSquashfs packs a tree that a shell script makes.
func makeSquashfs(t *testing.T, script string) []byte {
	t.Helper()
	functest.Need(t, os.Geteuid() == 0, "root")
	_, err := exec.LookPath("mksquashfs")
	functest.Need(t, err == nil, "mksquashfs")
	dir := t.TempDir()
	run(t, "mkdir "+dir+"/t; cd "+dir+"/t; "+script+"\nmksquashfs . ../image -quiet -no-progress")
	data, err := os.ReadFile(filepath.Join(dir, "image"))
	require.NoError(t, err)
	return data
}

// TestSquashfsLimits: an image that says that it is too large is refused at once, one that does not when it shows.
func TestSquashfsLimits(t *testing.T) {
	small := makeSquashfs(t, "mkdir bin etc; touch bin/sh")
	endless := filepath.Join(t.TempDir(), "endless")
	require.NoError(t, os.WriteFile(endless, []byte("#!/bin/bash\n"+
		"for a in \"$@\"; do [ \"$p\" = -dest ] && dest=$a; p=$a; done; while :; do : > $dest/$((i++)); done"), 0o755))
	lying := makeSquashfs(t, "touch {1..60}")
	binary.LittleEndian.PutUint32(lying[4:], 3)
	for name, c := range map[string]struct {
		data    []byte
		program string // empty: unsquashfs
		want    string
	}{
		"says so":    {makeSquashfs(t, "touch {1..51}"), "", "its superblock tells of 51 entries, more than the limit of 50"},
		"hard links": {makeSquashfs(t, "touch 1; for i in {2..51}; do ln 1 $i; done"), "", "is one more than the limit of 50 entries"},
		"lies":       {lying, "", ""}, // in the words of unsquashfs
		"bomb":       {makeSquashfs(t, "for i in {1..9}; do head -c 2000000 /dev/zero >$i; done"), "", "makes the content larger than 16777216 bytes"},
		"large file": {makeSquashfs(t, "head -c 20000000 /dev/zero >1"), "", "a squashfs that cannot be unpacked: a file in it is larger than 16777216 bytes"},
		"random":     {makeSquashfs(t, "head -c 17000000 /dev/urandom >1"), "", "a squashfs that cannot be unpacked: a file in it is larger than 16777216 bytes"},
		"endless":    {small, endless, "is one more than the limit of 50 entries"},
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t, func(o *Options) {
				o.MaxEntries, o.MaxUnpackedBytes, o.Unsquashfs, o.Timeout = 50, 16<<20, c.program, time.Minute
			})
			_, err := s.Sync(t.Context(), request("image", c.data))
			var bad *UnacceptableError
			require.ErrorAs(t, err, &bad)
			require.Contains(t, bad.Found, c.want)
			t.Log(bad.Found)
			requireClean(t, s)
		})
	}
	s := openStore(t, func(o *Options) { o.MaxEntries = 3 })
	img, err := s.Sync(t.Context(), request("image", small))
	require.NoError(t, err)
	require.Equal(t, 3, img.Entries)
}

// TestSquashfsHashFirst: a squashfs that is not what Glance has recorded reaches no program.
func TestSquashfsHashFirst(t *testing.T) {
	data := makeSquashfs(t, "mkdir bin etc; touch bin/sh")
	none := filepath.Join(t.TempDir(), "unsquashfs")
	require.NoError(t, os.WriteFile(none, []byte("not a program"), 0o600))
	s := openStore(t, func(o *Options) { o.Unsquashfs = none })
	_, err := s.Sync(t.Context(), request("sound", data))
	require.ErrorContains(t, err, "confine unsquashfs: execute "+none)
	r := request("damaged", data)
	r.Source.(*bytesSource).damage = func(_ int, p []byte) { clear(p[200:300]) }
	_, err = s.Sync(t.Context(), r)
	require.ErrorIs(t, err, ErrHashMismatch)
	require.NotContains(t, err.Error(), "execute")
	requireClean(t, s)
}
