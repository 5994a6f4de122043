//go:build functional

package main

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// store is an image store without an agent, and the program that works on it.
type store struct {
	t      *testing.T
	dir    string // of the store
	config string
	binary string
}

func newStore(t *testing.T, dir string) *store {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("COMPUTE_AGENT_FUNCTIONAL") == "1" {
			t.Fatal("needs root: owners of files, mounts")
		}
		t.Skip("needs root: owners of files, mounts")
	}
	base := t.TempDir()
	s := &store{t: t, dir: dir, config: filepath.Join(base, "agent.conf"), binary: filepath.Join(base, "program")}
	out, err := exec.CommandContext(t.Context(), "go", "build", "-o", s.binary, ".").CombinedOutput()
	require.NoError(t, err, "%s", out)
	credentials := "auth_type = password\nauth_url = http://127.0.0.1:1/v3\nusername = nova\npassword = x\nproject_name = service\nuser_domain_name = Default\nproject_domain_name = Default\n"
	text := "[DEFAULT]\ntransport_url = rabbit://127.0.0.1:1/\nstate_path = " + base + "\n[lxc]\nimage_dir = " + dir +
		"\n[placement]\n" + credentials + "[neutron]\n" + credentials
	require.NoError(t, os.WriteFile(s.config, []byte(text), 0o600))
	return s
}

func (s *store) command(args ...string) *exec.Cmd {
	ctx, cancel := context.WithTimeout(s.t.Context(), 5*time.Minute)
	s.t.Cleanup(cancel)
	return exec.CommandContext(ctx, s.binary, append(append([]string{"image"}, args...), "--config-file", s.config)...)
}

func (s *store) run(args ...string) (string, error) {
	s.t.Helper()
	cmd := s.command(args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%w: %s", err, stderr.String())
	}
	return stdout.String(), nil
}

func (s *store) must(args ...string) string {
	s.t.Helper()
	out, err := s.run(args...)
	require.NoError(s.t, err)
	return out
}

// killed runs a command and kills it after a part of a time.
func (s *store) killed(limit time.Duration, args ...string) {
	s.t.Helper()
	cmd := s.command(args...)
	require.NoError(s.t, cmd.Start())
	time.Sleep(time.Duration(rand.Int64N(int64(limit))))
	_ = cmd.Process.Signal(syscall.SIGKILL) // it may have ended
	_ = cmd.Wait()
}

// clean opens the store, which is a start of the agent in this respect, and requires that nothing half-done is left.
func (s *store) clean() {
	s.t.Helper()
	s.must("list")
	entries, err := os.ReadDir(filepath.Join(s.dir, "staging"))
	require.NoError(s.t, err)
	require.Empty(s.t, entries)
}

// imageFile is a root file system of that many bytes in files of 100 kB, which do not compress.
func imageFile(t *testing.T, size int, seed uint64) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), fmt.Sprintf("image-%d.tar", seed))
	f, err := os.Create(name)
	require.NoError(t, err)
	defer f.Close()
	w := tar.NewWriter(f)
	body := make([]byte, 100_000)
	random := rand.NewChaCha8([32]byte{byte(seed)})
	header := func(h *tar.Header) { require.NoError(t, w.WriteHeader(h)) }
	header(&tar.Header{Name: "etc/", Typeflag: tar.TypeDir, Mode: 0o755})
	header(&tar.Header{Name: "sbin/init", Mode: 0o755})
	for i := range size / len(body) {
		_, _ = random.Read(body)
		header(&tar.Header{Name: fmt.Sprintf("data/%d", i), Mode: 0o640, Uid: i, Size: int64(len(body)), ModTime: time.Unix(int64(i), 0)})
		_, err := w.Write(body)
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return name
}

func sha(t *testing.T, file string) string {
	t.Helper()
	f, err := os.Open(file)
	require.NoError(t, err)
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	require.NoError(t, err)
	return hex.EncodeToString(h.Sum(nil))
}

const (
	kills = 12
	// pruneSpan is about what a removal of the test's image takes, the start of the program included.
	pruneSpan = 60 * time.Millisecond
)

func TestKillImageCommand(t *testing.T) {
	t.Parallel()
	s := newStore(t, filepath.Join(t.TempDir(), "images"))
	file, other := imageFile(t, 20_000_000, 1), imageFile(t, 1_000_000, 2)
	began := time.Now()
	s.must("import", "--name", "x", file)
	span := 3 * time.Since(began) / 2
	target := filepath.Join(t.TempDir(), "x.tar.zst")
	s.must("export", "x", target)
	want := sha(t, target)
	s.must("import", "--name", "other", other, "--keep")

	there, gone := 0, 0
	for range kills {
		s.killed(pruneSpan, "prune", "--unused-for", "0s")
		s.clean()
		if _, err := s.run("show", "local-x"); err == nil {
			there++
			require.NoError(t, os.Remove(target))
			s.must("export", "x", target)
			require.Equal(t, want, sha(t, target), "an image that is there is whole")
			continue
		}
		gone++
		for range 20 {
			s.killed(span, "import", "--name", "x", file)
			s.clean()
			if _, err := s.run("show", "local-x"); err == nil {
				break
			}
		}
		if _, err := s.run("show", "local-x"); err != nil {
			s.must("import", "--name", "x", file)
		}
		// The import's time is in the metadata that the store made up; the tree is the same.
		require.NoError(t, os.Remove(target))
		s.must("export", "x", target)
		want = sha(t, target)
	}
	t.Logf("killed %d prunes: %d before, %d after", kills, there, gone)
	s.must("show", "local-other")
}

func TestKillImageExport(t *testing.T) {
	t.Parallel()
	s := newStore(t, filepath.Join(t.TempDir(), "images"))
	s.must("import", "--name", "x", imageFile(t, 20_000_000, 1))
	dir := t.TempDir()
	target := filepath.Join(dir, "x.tar.zst")
	began := time.Now()
	s.must("export", "x", target)
	span := 3 * time.Since(began) / 2
	want := sha(t, target)
	whole := 0
	for n := range kills {
		args := []string{"export", "x", target}
		if n%2 == 0 {
			require.NoError(t, os.RemoveAll(target))
		} else {
			require.NoError(t, os.WriteFile(target, []byte("old"), 0o600))
			args = append(args, "--force")
		}
		s.killed(span, args...)
		entries, err := os.ReadDir(dir)
		require.NoError(t, err)
		for _, e := range entries {
			require.Equal(t, "x.tar.zst", e.Name(), "nothing else is left")
		}
		got, err := os.ReadFile(target)
		switch {
		case errors.Is(err, os.ErrNotExist) && n%2 == 0:
		case string(got) == "old" && n%2 == 1:
		default:
			require.NoError(t, err)
			require.Equal(t, want, sha(t, target), "whole or not at all")
			whole++
		}
		s.clean()
	}
	t.Logf("killed %d exports, %d of them after the end", kills, whole)
}

// small mounts a file system of its own.
func small(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, syscall.Mount("none", dir, "tmpfs", 0, "size="+size))
	t.Cleanup(func() { require.NoError(t, syscall.Unmount(dir, 0)) })
	return dir
}

func TestImageDiskFull(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts")
	}
	// The store leaves 256 MiB free.
	s := newStore(t, filepath.Join(small(t, "300m"), "images"))
	s.must("import", "--name", "first", imageFile(t, 2_000_000, 1))
	first := filepath.Join(t.TempDir(), "first.tar")
	s.must("export", "first", first)
	large := imageFile(t, 150_000_000, 2)
	_, err := s.run("import", "--name", "second", large) // its size is known
	require.ErrorContains(t, err, "no space left in the image store")
	require.ErrorContains(t, err, "image prune")
	cmd := s.command("import", "--name", "second", "-") // its size is not
	body, err := os.Open(large)
	require.NoError(t, err)
	defer body.Close()
	var stderr bytes.Buffer
	cmd.Stdin, cmd.Stderr = io.MultiReader(body), &stderr
	require.Error(t, cmd.Run())
	require.Contains(t, stderr.String(), "no space left in the image store")
	s.clean()
	again := filepath.Join(t.TempDir(), "again.tar")
	s.must("export", "first", again)
	require.Equal(t, sha(t, first), sha(t, again), "what was there is whole")
	_, err = s.run("show", "local-second")
	require.ErrorContains(t, err, "not in the store")

	dir := small(t, "1m")
	for _, name := range []string{"x.tar.zst", "x.tar.xz", "x.tar.gz", "x.tar"} {
		_, err = s.run("export", "first", filepath.Join(dir, name))
		require.ErrorContains(t, err, "no space left on device", name)
		require.ErrorContains(t, err, "did not fit", name)
		entries, err := os.ReadDir(dir)
		require.NoError(t, err)
		require.Empty(t, entries, name)
	}
}
