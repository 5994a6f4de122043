package drivertest

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/internal/storage"
)

// busybox is the static binary that small root file systems are made of
// (Debian package busybox-static).
const busybox = "/bin/busybox"

// inittab: a line on the console when the guest is up, then nothing but waiting.
const inittab = "::sysinit:/bin/sh /etc/rc\n::respawn:/bin/sleep 3600\n::shutdown:/bin/echo guest halts\n"

// BusyboxRootFS makes a root file system of a few hundred kilobytes below dir, owned by
// the ids of a guest. Its init is busybox's, which writes BootLine to the console.
// It fails the test if busybox-static is not installed. Needs root.
func BusyboxRootFS(t *testing.T, dir string, ids storage.IDRange) {
	t.Helper()
	applets, err := exec.CommandContext(t.Context(), busybox, "--list").Output()
	require.NoError(t, err, "package busybox-static is needed")
	require.NoError(t, os.MkdirAll(dir, 0o755)) //nolint:gosec // as in an image
	root, err := os.OpenRoot(dir)
	require.NoError(t, err)
	defer root.Close() //nolint:errcheck // a directory holds nothing back
	for _, d := range []string{"bin", "sbin", "dev", "etc", "proc", "root", "run", "sys", "tmp", "var"} {
		require.NoError(t, root.MkdirAll(d, 0o755))
	}
	binary, err := os.ReadFile(busybox)
	require.NoError(t, err)
	write(t, root, "bin/busybox", string(binary), 0o755)
	for applet := range strings.FieldsSeq(string(applets)) {
		if applet != "busybox" && applet != "init" {
			require.NoError(t, root.Symlink("busybox", filepath.Join("bin", applet)))
		}
	}
	require.NoError(t, root.Symlink("../bin/busybox", filepath.Join("sbin", "init")))
	write(t, root, "etc/inittab", inittab, 0o644)
	write(t, root, "etc/rc", fmt.Sprintf("echo '%s'\n", BootLine), 0o755)
	write(t, root, "etc/passwd", "root:x:0:0:root:/root:/bin/sh\n", 0o644)
	write(t, root, "etc/group", "root:x:0:\n", 0o644)
	ShiftOwner(t, dir, ids)
}

// ShiftOwner gives everything below dir to the root of a guest. Needs root.
func ShiftOwner(t *testing.T, dir string, ids storage.IDRange) {
	t.Helper()
	root, err := os.OpenRoot(dir)
	require.NoError(t, err)
	defer root.Close() //nolint:errcheck // a directory holds nothing back
	require.NoError(t, fs.WalkDir(root.FS(), ".", func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return root.Lchown(path, int(ids.Base), int(ids.Base))
	}))
}

func write(t *testing.T, root *os.Root, name, content string, mode os.FileMode) {
	t.Helper()
	require.NoError(t, root.WriteFile(name, []byte(content), mode))
	require.NoError(t, root.Chmod(name, mode)) // whatever the umask says
}
