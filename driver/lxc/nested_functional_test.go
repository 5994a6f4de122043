//go:build functional

package lxc

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/driver/drivertest"
	"github.com/compute-agent/compute-agent/internal/functest"
	"github.com/compute-agent/compute-agent/internal/storage"
	"github.com/compute-agent/compute-agent/internal/storage/btrfs"
	"github.com/compute-agent/compute-agent/internal/storage/dir"
	"github.com/compute-agent/compute-agent/internal/storage/overlay"
	"github.com/compute-agent/compute-agent/internal/storage/pool"
)

// mountBtrfs mounts a btrfs of its own below base.
func mountBtrfs(t *testing.T, base string) string {
	t.Helper()
	onBtrfs := filepath.Join(base, "btrfs")
	require.NoError(t, os.Mkdir(onBtrfs, 0o755))
	image := filepath.Join(base, "btrfs.img")
	require.NoError(t, os.WriteFile(image, nil, 0o600))
	require.NoError(t, os.Truncate(image, 2<<30))
	for _, args := range [][]string{{"mkfs.btrfs", "-q", image}, {"mount", "-o", "loop", image, onBtrfs}} {
		_, err := exec.LookPath(args[0])
		functest.Need(t, err == nil, args[0])
		out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput()
		require.NoErrorf(t, err, "%s", out)
	}
	t.Cleanup(func() { require.NoError(t, unix.Unmount(onBtrfs, unix.MNT_DETACH)) })
	return onBtrfs
}

// TestFunctionalSubvolume: a guest whose root disk has no size, which is a subvolume then, cannot make any in it: snapshots of its
// files would keep blocks that it has deleted. With a policy that allows the calls it can.
func TestFunctionalSubvolume(t *testing.T) {
	base := testDir(t)
	back, err := btrfs.New(filepath.Join(mountBtrfs(t, base), "pool"), 0)
	require.NoError(t, err)
	tree := filepath.Join(base, "image")
	require.NoError(t, os.MkdirAll(filepath.Join(tree, "tool"), 0o755))
	drivertest.BusyboxRootFS(t, tree, storage.IDRange{Size: 65536})
	// The program and all that it is linked with.
	out, err := exec.CommandContext(t.Context(), "sh", "-c", "p=$(command -v btrfs) && cp -L $p $(ldd $p | grep -o '/[^ ]*') "+filepath.Join(tree, "tool")).CombinedOutput()
	require.NoErrorf(t, err, "%s", out)
	open := filepath.Join(base, "open.policy")
	require.NoError(t, os.WriteFile(open, []byte("2\ndenylist\n[all]\nkexec_load errno 38\n"), 0o600))
	for policy, want := range map[string]string{"": "not permitted", open: "made"} {
		d := newDriver(t, func(o *Options) { o.SeccompProfile = policy })
		spec, plain := newSpec(t)
		require.NoError(t, os.RemoveAll(plain))
		root := storage.Root{InstanceID: spec.UUID, ImagePath: tree, IDs: spec.IDs}
		require.NoError(t, back.Create(t.Context(), root))
		rootfs, err := back.Mount(t.Context(), root)
		require.NoError(t, err)
		require.NoError(t, d.Create(t.Context(), spec, rootfs))
		require.NoError(t, d.Start(t.Context(), spec.UUID, nil))
		require.Contains(t, run(t, d, spec.UUID, "/tool/ld-linux-x86-64.so.2 --library-path /tool /tool/btrfs subvolume create /sub 2>&1 && echo made; true"), want)
		require.NoError(t, d.Destroy(t.Context(), spec.UUID))
		require.NoError(t, back.Delete(t.Context(), spec.UUID))
	}
}

// TestFunctionalNestedOverlay: the root of a guest that is to run containers of its own can mount an overlay
// on its root disk, write through it, and see the layers apart.
func TestFunctionalNestedOverlay(t *testing.T) {
	base := testDir(t)
	pools := filepath.Join(base, "pools")
	onBtrfs := mountBtrfs(t, base)
	tree := filepath.Join(base, "image")
	require.NoError(t, os.Mkdir(tree, 0o755))
	drivertest.BusyboxRootFS(t, tree, storage.IDRange{Size: 65536})

	for name, open := range map[string]func() (storage.Backend, error){
		"dir": func() (storage.Backend, error) { return dir.New(filepath.Join(pools, "dir"), pool.FileOptions{}) },
		"overlay": func() (storage.Backend, error) {
			layers, err := overlay.New(t.Context(), filepath.Join(pools, "overlay"), pool.FileOptions{})
			if err != nil {
				return nil, err
			}
			copies, err := dir.New(filepath.Join(pools, "copies"), pool.FileOptions{})
			return storage.Choose(layers, copies), err
		},
		"btrfs": func() (storage.Backend, error) { return btrfs.New(filepath.Join(onBtrfs, "pool"), 0) },
	} {
		t.Run(name, func(t *testing.T) {
			back, err := open()
			require.NoError(t, err)
			spec, plain := newSpec(t)
			require.NoError(t, os.RemoveAll(plain))
			spec.Limits.Nested = true
			root := storage.Root{InstanceID: spec.UUID, ImagePath: tree, SizeGB: 1, IDs: spec.IDs, Nested: true}
			require.NoError(t, back.Create(t.Context(), root))
			t.Cleanup(func() { require.NoError(t, back.Delete(context.WithoutCancel(t.Context()), spec.UUID)) })
			rootfs, err := back.Mount(t.Context(), root)
			require.NoError(t, err)
			d := newDriver(t)
			require.NoError(t, d.Create(t.Context(), spec, rootfs))
			require.NoError(t, d.Start(t.Context(), spec.UUID, nil))
			out := run(t, d, spec.UUID, "mkdir -p /n/lower /n/upper /n/work /n/merged && echo below > /n/lower/file && "+
				"mount -t overlay overlay -o lowerdir=/n/lower,upperdir=/n/upper,workdir=/n/work /n/merged && "+
				"echo above > /n/merged/file && mkdir /n/merged/dir && rm -r /n/merged/dir && cat /n/lower/file /n/upper/file && umount /n/merged")
			require.Equal(t, "below\nabove", out)
		})
	}
}
