//go:build functional

package unsquash

import (
	"context"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/internal/functest"
)

func setUp(t *testing.T) Options {
	t.Helper()
	functest.Need(t, os.Geteuid() == 0, "root")
	dir := t.TempDir()
	o := Options{Program: "/usr/bin/unsquashfs", Image: filepath.Join(dir, "image"), Target: filepath.Join(dir, "tree"), Entries: 1 << 20, Bytes: 1 << 30, Reserve: 1}
	o.Judge = func(context.Context) error { return nil }
	require.NoError(t, os.Mkdir(o.Target, 0o755))
	require.NoError(t, os.WriteFile(o.Image, superblock(2, superblockSize), 0o600))
	return o
}

// superblock tells of so many inodes and bytes; tests with a program of their own need no more of an image.
func superblock(inodes uint32, size uint64) []byte {
	head := make([]byte, superblockSize)
	copy(head, "hsqs")
	binary.LittleEndian.PutUint32(head[4:], inodes)
	binary.LittleEndian.PutUint16(head[28:], 4)
	binary.LittleEndian.PutUint64(head[40:], size)
	return head
}

// program is a shell script in the place of unsquashfs, with the target in $dest.
func program(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "program")
	require.NoError(t, os.WriteFile(path, []byte("#!/bin/bash\nfor a in \"$@\"; do [ \"$p\" = -dest ] && dest=$a; p=$a; done\n"+text), 0o755))
	return path
}

func script(t *testing.T, text string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "/bin/sh", "-ec", text).CombinedOutput()
	require.NoError(t, err, string(out))
	return string(out)
}

func TestRun(t *testing.T) {
	o := setUp(t)
	_, err := exec.LookPath("mksquashfs")
	functest.Need(t, err == nil, "mksquashfs")
	source := filepath.Join(t.TempDir(), "source")
	script(t, "mkdir -p "+source+"/bin "+source+"/dev; cd "+source+"; echo ping > bin/ping; setcap cap_net_raw=ep bin/ping; echo su > bin/su; chown 3:4 bin/su; "+
		"chmod 4755 bin/su; ln bin/su bin/hard; ln -s /etc/shadow link; mknod dev/null c 1 3; mkfifo pipe; setfattr -n user.k -v v bin/su; mksquashfs . "+o.Image+" -noappend -quiet -no-progress -comp zstd")
	require.NoError(t, Run(t.Context(), o))
	got := script(t, "cd "+o.Target+"; stat -c '%n %a %u:%g %h %F' bin/ping bin/su link pipe; getcap bin/ping; getfattr --only-values -n user.k bin/su; ls dev")
	require.Equal(t, "bin/ping 644 0:0 1 regular file\nbin/su 4755 3:4 2 regular file\nlink 777 0:0 1 symbolic link\npipe 644 0:0 1 fifo\nbin/ping cap_net_raw=ep\nv", got)
}

// TestConfined runs, in place of unsquashfs, a program that tries to get out.
func TestConfined(t *testing.T) {
	o := setUp(t)
	outside := filepath.Join(filepath.Dir(o.Target), "outside")
	require.NoError(t, os.WriteFile(outside, []byte("secret"), 0o600))
	o.Program = program(t, `
try() { "$@" 2>/dev/null && echo "$*" >> $dest/succeeded; }
echo inside > $dest/inside
try touch `+outside+`.new
try chmod 777 `+outside+`
try chown 1:1 `+outside+`
try rm `+outside+`
try touch -d 2001-01-01 `+outside+`
try setfattr -n user.x -v y `+outside+`
try touch /tmp/escaped
try mount -o remount,rw /
try umount /dev
try mount -t tmpfs none /mnt
try mknod $dest/disk b 253 0
try chroot / true
try ls /proc/1
try ls /dev/null
try kill -0 1000
try ip link add x type dummy
try nice -n -5 true
exit 0
`)
	require.NoError(t, Run(t.Context(), o))
	require.FileExists(t, filepath.Join(o.Target, "inside"))
	text, err := os.ReadFile(filepath.Join(o.Target, "succeeded"))
	require.ErrorIs(t, err, os.ErrNotExist, string(text))
	var st unix.Stat_t
	require.NoError(t, unix.Stat(outside, &st))
	require.Equal(t, uint32(0o600), st.Mode&0o7777)
}

func TestDeadlineAndSpace(t *testing.T) {
	o := setUp(t)
	o.Program = program(t, "sleep 60 & sleep 60\n")
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	start := time.Now()
	require.ErrorIs(t, Run(ctx, o), context.DeadlineExceeded)
	o.Reserve = 1 << 62
	require.ErrorIs(t, Run(t.Context(), o), unix.ENOSPC)
	require.Less(t, time.Since(start), 20*time.Second)
	o.Reserve = 1
	o.Program = "/does/not/exist"
	err := Run(t.Context(), o)
	require.ErrorContains(t, err, "confine unsquashfs: execute /does/not/exist")
}

func TestOnlyDevices(t *testing.T) {
	for out, want := range map[string]bool{
		"": true,
		"create_inode: could not create character device x, because you're not superuser!": true,
		"write_xattr: failed": false,
	} {
		require.Equal(t, want, onlyDevices(out), out)
	}
	require.LessOrEqual(t, len(firstLine(strings.Repeat("x", 1000), os.ErrInvalid)), 300)
}
