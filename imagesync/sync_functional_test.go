//go:build functional

package imagesync

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/internal/functest"
)

// Real images, in the directory that COMPUTE_AGENT_TEST_IMAGES names.
var (
	imageDir     = os.Getenv("COMPUTE_AGENT_TEST_IMAGES")
	debianImage  = filepath.Join(imageDir, "debian-12-rootfs.tar.xz")
	busyboxImage = filepath.Join(imageDir, "busybox-rootfs.tar.gz")
)

func needImage(t testing.TB, file string) int64 {
	t.Helper()
	functest.Need(t, os.Geteuid() == 0, "root")
	info, err := os.Stat(file)
	functest.Need(t, err == nil, file)
	return info.Size()
}

// TestRealImages compares with what tar makes of the same archives.
func TestRealImages(t *testing.T) {
	for _, file := range []string{busyboxImage, debianImage} {
		t.Run(filepath.Base(file), func(t *testing.T) {
			size := needImage(t, file)
			s := openStore(t)
			img, err := s.Sync(t.Context(), Request{ID: "image", Size: size, DiskFormat: "raw", ContainerFormat: "bare", Source: fileSource(file)})
			require.NoError(t, err)
			want := t.TempDir()
			run(t, "tar -C "+want+" -xpf "+file+" --xattrs --xattrs-include='*' --numeric-owner && find "+want+" -type b -delete -o -type c -delete")
			// Everything but the times of directories that tar made itself.
			list := func(dir string) string {
				return run(t, "cd "+dir+" && find . -printf '%p %y %m %U:%G %s %n %l %T@\\n' | sed 's/\\(^.* d .*\\) [0-9]*  [0-9.]*$/\\1/; s/ d \\([0-9]*\\) \\([0-9:]*\\) .*/ d \\1 \\2/' | sort; getfattr -Rhd -m - . 2>/dev/null; find . -type f -exec sha256sum {} + | sort")
			}
			require.Equal(t, list(want), list(img.Path))
		})
	}
}

func run(t testing.TB, script string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "/bin/bash", "-ec", script).CombinedOutput()
	require.NoError(t, err, string(out))
	return string(out)
}

// TestKilled kills a process that syncs at 25 moments; the next one finds nothing half made.
func TestKilled(t *testing.T) {
	size := needImage(t, busyboxImage)
	if dir := os.Getenv("IMAGESYNC_TEST_CHILD"); dir != "" {
		s, err := Open(Options{Dir: dir})
		require.NoError(t, err)
		fmt.Println("ready")
		_, err = s.Sync(t.Context(), Request{ID: "image", Size: size, Source: slowSource{fileSource(busyboxImage)}})
		require.NoError(t, err)
		return
	}
	dir := filepath.Join(t.TempDir(), "images")
	halves := 0
	for range 25 {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^TestKilled$")
		cmd.Env = append(os.Environ(), "IMAGESYNC_TEST_CHILD="+dir)
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		_, err = io.ReadFull(out, make([]byte, len("ready")))
		require.NoError(t, err)
		time.Sleep(time.Duration(rand.IntN(250)) * time.Millisecond)
		require.NoError(t, cmd.Process.Kill())
		_, _ = io.Copy(io.Discard, out)
		_ = cmd.Wait()
		if left, _ := os.ReadDir(filepath.Join(dir, "staging")); len(left) > 0 {
			halves++
		}
		s, err := Open(Options{Dir: dir})
		require.NoError(t, err)
		s.work.Wait() // what was complete is forced to disk
		require.Empty(t, readDir(t, filepath.Join(dir, "staging")))
		images, err := s.List(t.Context())
		require.NoError(t, err)
		for _, img := range images {
			require.FileExists(t, filepath.Join(img.Path, "bin/busybox"))
			require.NoError(t, s.Remove(t.Context(), img.ID))
		}
		_, err = s.Prune(t.Context(), Policy{})
		require.NoError(t, err)
		require.Empty(t, readDir(t, filepath.Join(dir, "images")))
		require.NoError(t, s.Close())
	}
	require.Positive(t, halves, "some were killed in the middle")
	s, err := Open(Options{Dir: dir})
	require.NoError(t, err)
	_, err = s.Sync(t.Context(), Request{ID: "image", Size: size, Source: fileSource(busyboxImage)})
	require.NoError(t, err)
	require.NoError(t, s.Close())
}

// slowSource takes about 150 ms for the busybox image.
type slowSource struct{ src Source }

func (s slowSource) Open(ctx context.Context, offset int64) (io.ReadCloser, error) {
	r, err := s.src.Open(ctx, offset)
	return slowReader{r}, err
}

type slowReader struct{ io.ReadCloser }

func (s slowReader) Read(p []byte) (int, error) {
	time.Sleep(4 * time.Millisecond)
	return s.ReadCloser.Read(p[:min(len(p), 32<<10)])
}

// TestMemory: an import may not grow the process by more than 64 MiB.
func TestMemory(t *testing.T) {
	size := needImage(t, debianImage)
	if os.Getenv("IMAGESYNC_TEST_CHILD") == "" {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^TestMemory$", "-test.v")
		cmd.Env = append(os.Environ(), "IMAGESYNC_TEST_CHILD=1")
		out, err := cmd.CombinedOutput()
		t.Log(string(out))
		require.NoError(t, err)
		return
	}
	s := openStore(t)
	before := peak(t)
	_, err := s.Sync(t.Context(), Request{ID: "image", Size: size, Source: fileSource(debianImage)})
	require.NoError(t, err)
	t.Logf("grew by %d KiB from %d", peak(t)-before, before)
	require.Less(t, peak(t)-before, 64<<10)
}

// TestMemoryOfTenMillionEntries: what an archive costs in memory does not grow with its entries.
func TestMemoryOfTenMillionEntries(t *testing.T) {
	if os.Getenv("IMAGESYNC_TEST_CHILD") == "" {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^"+t.Name()+"$", "-test.v")
		cmd.Env = append(os.Environ(), "IMAGESYNC_TEST_CHILD=1")
		out, err := cmd.CombinedOutput()
		t.Log(string(out))
		require.NoError(t, err)
		return
	}
	s := openStore(t, func(o *Options) { o.MaxEntries = 20_000_000 })
	before, began := peak(t), time.Now()
	_, err := s.Sync(t.Context(), Request{ID: "many", Source: manyEntries{t, 10_000_000}})
	require.NoError(t, err)
	t.Logf("10,000,000 entries in %.1f s; grew by %d KiB from %d", time.Since(began).Seconds(), peak(t)-before, before)
	require.Less(t, peak(t)-before, 64<<10)
}

// TestMemoryOfBombs: nor with what a stream decompresses to.
func TestMemoryOfBombs(t *testing.T) {
	kind := os.Getenv("IMAGESYNC_TEST_CHILD")
	if kind == "" {
		for _, program := range []string{"gzip -1", "xz -0", "zstd -q", "bzip2 -1"} {
			t.Run(program, func(t *testing.T) {
				_, err := exec.LookPath(strings.Fields(program)[0])
				functest.Need(t, err == nil, program)
				file := filepath.Join(t.TempDir(), "bomb")
				require.NoError(t, os.WriteFile(file+".tar", makeTar(t, rootfs("./"), nil), 0o600))
				run(t, "(cat "+file+".tar; head -c 1G /dev/zero) | "+program+" -c >"+file)
				cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^TestMemoryOfBombs$", "-test.v")
				cmd.Env = append(os.Environ(), "IMAGESYNC_TEST_CHILD="+file)
				out, err := cmd.CombinedOutput()
				t.Log(string(out))
				require.NoError(t, err)
			})
		}
		return
	}
	s := openStore(t, func(o *Options) { o.MaxUnpackedBytes = 900 << 20 })
	before, began := peak(t), time.Now()
	_, err := s.Sync(t.Context(), Request{ID: "bomb", Source: fileSource(kind)})
	var bad *UnacceptableError
	require.ErrorAs(t, err, &bad)
	t.Logf("%s; in %.2f s; grew by %d KiB from %d", bad.Found, time.Since(began).Seconds(), peak(t)-before, before)
	require.Less(t, peak(t)-before, 64<<10)
}

// TestMemoryOfDisks: nor with the size of a disk.
func TestMemoryOfDisks(t *testing.T) {
	file := os.Getenv("IMAGESYNC_TEST_CHILD")
	if file == "" {
		needImage(t, debianImage)
		_, err := exec.LookPath("qemu-img")
		functest.Need(t, err == nil, "qemu-img")
		dir := t.TempDir()
		disk := filepath.Join(dir, "disk.raw")
		run(t, "mkdir "+dir+"/tree && tar -C "+dir+"/tree -xpf "+debianImage+" && mkfs.ext4 -q -d "+dir+"/tree "+disk+" 2G && rm -r "+dir+"/tree")
		for name, convert := range map[string]string{
			"compressed": "-c -O qcow2",
			"plain":      "-O qcow2",
			"raw":        "-O raw",
		} {
			t.Run(name, func(t *testing.T) {
				converted := filepath.Join(dir, name)
				run(t, "qemu-img convert -q -f raw "+convert+" "+disk+" "+converted)
				cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^TestMemoryOfDisks$", "-test.v")
				cmd.Env = append(os.Environ(), "IMAGESYNC_TEST_CHILD="+converted)
				out, err := cmd.CombinedOutput()
				t.Log(string(out))
				require.NoError(t, err)
			})
		}
		return
	}
	s := openStore(t)
	before, began := peak(t), time.Now()
	img, err := s.Sync(t.Context(), Request{ID: "disk", Size: needImage(t, file), Source: fileSource(file)})
	require.NoError(t, err)
	t.Logf("%d MiB in a file of %d MiB; in %.2f s; grew by %d KiB from %d", img.UnpackedSize>>20, img.Size>>20, time.Since(began).Seconds(), peak(t)-before, before)
	require.Less(t, peak(t)-before, 64<<10)
}

// peak is the largest resident size so far, in KiB.
func peak(t testing.TB) int {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	require.NoError(t, err)
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	n, err := strconv.Atoi(strings.Fields(rest)[0])
	require.NoError(t, err)
	return n
}

// BenchmarkImport imports a Debian root file system; BenchmarkTar is what it is measured against.
func BenchmarkImport(b *testing.B) {
	size := needImage(b, debianImage)
	for b.Loop() {
		b.StopTimer()
		s, err := Open(Options{Dir: b.TempDir()})
		require.NoError(b, err)
		b.StartTimer()
		_, err = s.Sync(b.Context(), Request{ID: "debian", Size: size, Source: fileSource(debianImage)})
		require.NoError(b, err)
		b.StopTimer()
		require.NoError(b, s.Close())
		b.StartTimer()
	}
}

// BenchmarkTar is `xz -dc -T0 | tar -x`.
func BenchmarkTar(b *testing.B) {
	needImage(b, debianImage)
	for b.Loop() {
		b.StopTimer()
		dir := b.TempDir()
		b.StartTimer()
		run(b, "xz -dc -T0 "+debianImage+" | tar -C "+dir+" -xp --xattrs --xattrs-include='*' --numeric-owner")
	}
}

// TestSquashfs: a squashfs becomes the same tree as the archive it was made from.
func TestSquashfs(t *testing.T) {
	needImage(t, busyboxImage)
	_, err := exec.LookPath("mksquashfs")
	functest.Need(t, err == nil, "mksquashfs")
	dir := t.TempDir()
	file := filepath.Join(dir, "image.squashfs")
	run(t, "mkdir "+dir+"/t && tar -C "+dir+"/t -xpf "+busyboxImage+" --numeric-owner && mksquashfs "+dir+"/t "+file+" -quiet -no-progress")
	info, err := os.Stat(file)
	require.NoError(t, err)
	s := openStore(t)
	img, err := s.Sync(t.Context(), Request{ID: "squashfs", Size: info.Size(), DiskFormat: "squashfs", ContainerFormat: "bare", Source: fileSource(file)})
	require.NoError(t, err)
	tar, err := s.Sync(t.Context(), Request{ID: "tar", Source: fileSource(busyboxImage)})
	require.NoError(t, err)
	list := func(dir string) string {
		return run(t, "cd "+dir+" && find . ! -type d -printf '%p %y %m %U:%G %s %n %l\\n' | sort; find . -type f -exec sha256sum {} + | sort")
	}
	require.Equal(t, list(tar.Path), list(img.Path))
	require.Positive(t, img.UnpackedSize)

	for name, script := range map[string]string{
		"whiteout": "mknod " + dir + "/t/etc/gone c 0 0",
		"owner":    "rm -f " + dir + "/t/etc/gone; touch " + dir + "/t/mine; chown 70000 " + dir + "/t/mine",
	} {
		bad := filepath.Join(dir, name)
		run(t, script+"; mksquashfs "+dir+"/t "+bad+" -quiet -no-progress -noappend")
		_, err = s.Sync(t.Context(), Request{ID: name, Source: fileSource(bad)})
		var refusal *UnacceptableError
		require.ErrorAs(t, err, &refusal, name)
		t.Log(err)
	}
}
