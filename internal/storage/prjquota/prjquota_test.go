package prjquota

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/internal/storage"
)

// fileSystem is one with quotas, seen from an empty directory.
type fileSystem struct {
	project uint32
	used    map[uint32]Limit
	limits  map[uint32]Limit
	racing  map[uint32]bool // somebody else takes these between the look and the assignment
	broken  error
}

func (f *fileSystem) assign(id uint32) error {
	if f.broken != nil {
		return f.broken
	}
	add := func(id uint32, n uint64) {
		used := f.used[id]
		used.Inodes += n
		f.used[id] = used
	}
	if f.project != 0 {
		add(f.project, ^uint64(0))
	}
	f.project = id
	add(id, 1)
	if f.racing[id] {
		add(id, 1)
	}
	return nil
}

func (f *fileSystem) look(id uint32) (used, limit Limit, err error) {
	return f.used[id], f.limits[id], nil
}

func draws(drawn ...uint32) func() uint32 {
	return func() uint32 {
		id := drawn[0]
		if len(drawn) > 1 {
			drawn = drawn[1:]
		}
		return id
	}
}

func TestClaim(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		fs    fileSystem
		drawn []uint32
		want  uint32
	}{
		"first":                          {fileSystem{}, []uint32{7}, 7},
		"another's files":                {fileSystem{used: map[uint32]Limit{7: {Inodes: 3}}}, []uint32{7, 8}, 8},
		"a limit without files":          {fileSystem{limits: map[uint32]Limit{7: {Bytes: 1 << 30}}}, []uint32{7, 8}, 8},
		"another's limit of inodes":      {fileSystem{limits: map[uint32]Limit{7: {Inodes: 5}}}, []uint32{7, 8}, 8},
		"taken at the same time":         {fileSystem{racing: map[uint32]bool{7: true}}, []uint32{7, 8}, 8},
		"taken at the same time, twice":  {fileSystem{racing: map[uint32]bool{7: true, 8: true}}, []uint32{7, 8, 7, 9}, 9},
		"nothing to be had":              {fileSystem{used: map[uint32]Limit{7: {Inodes: 1}}}, []uint32{7}, 0},
		"a file system without projects": {fileSystem{broken: unix.EOPNOTSUPP}, []uint32{7}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if test.fs.used == nil {
				test.fs.used = map[uint32]Limit{}
			}
			got, err := claim(&test.fs, draws(test.drawn...))
			require.Equal(t, test.want, got)
			require.Equal(t, test.want == 0, err != nil, err)
			if test.want != 0 {
				require.Equal(t, test.want, test.fs.project)
				require.EqualValues(t, 1, test.fs.used[test.want].Inodes, "nobody else's")
			}
		})
	}
}

func TestOurs(t *testing.T) {
	t.Parallel()
	for id, want := range map[uint32]bool{0: false, 10000: false, 1048577: false, 1<<30 - 1: false, 1 << 30: true, 1<<31 - 1: true, 1 << 31: false, 1<<32 - 1: false} {
		require.Equal(t, want, ours(id), id)
	}
}

// TestWithout: where there are no project quotas each step says so, and what lies there can be removed.
func TestWithout(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if Check(dir) == nil {
		t.Skip("the directory for temporary files is on a file system with project quotas")
	}
	err := Check(dir)
	require.ErrorIs(t, err, storage.ErrUnsupported)
	require.ErrorContains(t, err, "the file system of "+dir+" is not mounted with prjquota")
	path := filepath.Join(dir, "bounded")
	require.ErrorIs(t, Make(path, Limit{Bytes: 1 << 30, Inodes: 1}), storage.ErrUnsupported)
	require.Error(t, Set(path, Limit{Bytes: 1 << 30}))
	_, _, err = Look(path)
	require.Error(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(path, "file"), nil, 0o600))
	require.NoError(t, Remove(path))
	require.NoDirExists(t, path)
	require.NoError(t, Remove(path), "again")
	require.ErrorIs(t, Check(path), os.ErrNotExist)
}
