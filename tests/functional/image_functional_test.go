//go:build functional

package functional

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	neturl "net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/tests/functional/cloud"
)

// distinct is the small image with a file of its own, so that no store has its bytes.
func distinct(t *testing.T) []byte {
	t.Helper()
	file, err := os.Open(shared.Plane.BusyboxPath())
	require.NoError(t, err)
	defer file.Close()
	plain, err := gzip.NewReader(file)
	require.NoError(t, err)
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	w := tar.NewWriter(z)
	for r := tar.NewReader(plain); ; {
		hdr, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		require.NoError(t, w.WriteHeader(hdr))
		_, err = io.Copy(w, r)
		require.NoError(t, err)
	}
	mark := t.Name() + " " + uuid.NewString()
	require.NoError(t, w.WriteHeader(&tar.Header{Name: "etc/mark", Mode: 0o644, Size: int64(len(mark)), ModTime: time.Unix(1_700_000_000, 5)}))
	_, err = io.WriteString(w, mark)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	require.NoError(t, z.Close())
	return out.Bytes()
}

// storedImage is an image as "image list -f json" tells it.
type storedImage struct {
	ID, Fingerprint, Path string
	Instances             []string
	SameContent           []string `json:"same_content"`
	Keep                  bool
}

// imageCommand runs "compute-agent image" and returns what it printed, or its complaint as the error.
func imageCommand(t *testing.T, args ...string) (string, error) {
	t.Helper()
	cmd := shared.Agent.Command(within(t, 3*time.Minute), append([]string{"image"}, args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%w: %s", err, stderr.String())
	}
	return stdout.String(), nil
}

func stored(t *testing.T) map[string]storedImage {
	t.Helper()
	out, err := imageCommand(t, "list", "-f", "json")
	require.NoError(t, err)
	var listing struct{ Images []storedImage }
	require.NoError(t, json.Unmarshal([]byte(out), &listing), out)
	images := map[string]storedImage{}
	for _, i := range listing.Images {
		images[i.ID] = i
	}
	return images
}

// imagesImported lists the image ids that the agent has imported since an offset of its log.
func imagesImported(t *testing.T, from int64) []string {
	t.Helper()
	text, _, err := shared.Agent.Log(from)
	require.NoError(t, err)
	var ids []string
	for line := range strings.Lines(text) {
		if _, rest, ok := strings.Cut(line, "image_id="); ok && strings.Contains(line, `msg="image imported"`) {
			ids = append(ids, strings.Fields(rest)[0])
		}
	}
	return ids
}

func logEnd(t *testing.T) int64 {
	t.Helper()
	_, end, err := shared.Agent.Log(0)
	require.NoError(t, err)
	return end
}

func staged(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(storeDir(t), "staging"))
	require.NoError(t, err)
	names := []string{}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// nothingStaged waits until the image store has nothing half-done: records of whole images are written behind an import.
func nothingStaged(t *testing.T) {
	t.Helper()
	eventually(t, 20*time.Second, "the image store to have nothing half-done", func(context.Context) (bool, error) { return len(staged(t)) == 0, nil })
}

func storeDir(t *testing.T) string {
	t.Helper()
	for _, i := range stored(t) {
		return filepath.Dir(filepath.Dir(filepath.Dir(i.Path)))
	}
	require.Fail(t, "the store is empty")
	return ""
}

// TestAggregateCacheImage: the images are there before the first boot, and one that cannot be does not keep the others.
func TestAggregateCacheImage(t *testing.T) {
	good := uploadImage(t, distinct(t))
	name := shared.Host + "-cache"
	ctx := within(t, 3*time.Minute)
	openstack := func(args ...string) string {
		var out bytes.Buffer
		require.NoError(t, shared.Plane.OpenStack(ctx, &out, append([]string{"--os-compute-api-version", "2.81"}, args...)...), out.String())
		return out.String()
	}
	openstack("aggregate", "create", name)
	t.Cleanup(func() {
		clean, cancel := context.WithTimeout(context.Background(), slower*time.Minute)
		defer cancel()
		require.NoError(t, shared.Plane.OpenStack(clean, io.Discard, "aggregate", "remove", "host", name, shared.Host))
		require.NoError(t, shared.Plane.OpenStack(clean, io.Discard, "aggregate", "delete", name))
	})
	openstack("aggregate", "add", "host", name, shared.Host)

	began := logEnd(t)
	trace := listen(t).trace
	aggregate := strings.TrimSpace(openstack("aggregate", "show", name, "-f", "value", "-c", "id"))
	bad := cacheImages(t, aggregate, good, func() string { return uploadImage(t, []byte("this is no root file system, whatever Glance was told")) })
	eventually(t, time.Minute, "the image to be cached", func(context.Context) (bool, error) {
		return slices.Contains(imagesImported(t, began), good), nil
	})
	eventually(t, time.Minute, "the other one to be refused", func(context.Context) (bool, error) {
		text, _, err := shared.Agent.Log(began)
		return strings.Contains(text, "image not cached") && strings.Contains(text, bad), err
	})
	// What the conductor makes of the agent's answer.
	eventually(t, 20*time.Second, "the conductor to count", func(context.Context) (bool, error) {
		text, err := os.ReadFile(shared.Plane.LogFile("nova-conductor"))
		for line := range strings.Lines(string(text)) {
			if strings.Contains(line, good) && strings.Contains(line, "1 cached, 0 existing, 1 errors, 0 unsupported") {
				return true, nil
			}
		}
		return false, err
	})
	steps := func() (found []string) {
		messages, err := trace.Seen()
		require.NoError(t, err)
		for _, m := range messages {
			switch {
			case m.Method == "cache_images" && m.Key == "compute."+shared.Host:
				found = append(found, "call")
			case strings.HasPrefix(m.Event, "aggregate.cache_images."):
				publisher, _, _ := strings.Cut(m.Publisher, ":")
				found = append(found, publisher+" "+m.Event)
			}
		}
		return found
	}
	want := []string{
		"nova-api aggregate.cache_images.start", "call", "nova-conductor aggregate.cache_images.progress", "nova-api aggregate.cache_images.end",
	}
	eventually(t, 20*time.Second, "the last notification", func(context.Context) (bool, error) { return len(steps()) >= len(want), nil })
	require.Equal(t, want, sortedLike(steps()))

	images := stored(t)
	require.Contains(t, images, good)
	require.NotContains(t, images, bad)
	began = logEnd(t)
	server := boot(t, cloud.NewServer{Image: good})
	require.Empty(t, imagesImported(t, began), "the boot downloads nothing")
	require.Contains(t, inside(t, server.ID, "cat", "/etc/mark"), t.Name())
}

// cacheImages asks for two images at once, of which it makes the second. Zed's API takes those for duplicates that a Python set gives in
// another order, which differs from process to process: mostly one order or the other is right, and of some pairs of ids neither.
func cacheImages(t *testing.T, aggregate, one string, newOther func() string) (other string) {
	t.Helper()
	const pairs, tries = 5, 10
	var err error
	for range pairs {
		other = newOther()
		ids := []map[string]string{{"id": one}, {"id": other}}
		for range tries {
			rand.Shuffle(len(ids), func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
			err = shared.Admin.DoAt(within(t, time.Minute), "compute 2.81", http.MethodPost, cloud.Compute, "/os-aggregates/"+aggregate+"/images",
				map[string]any{"cache": ids}, nil)
			if err == nil || !strings.Contains(err.Error(), "Duplicate images") {
				require.NoError(t, err)
				return other
			}
		}
	}
	require.NoError(t, err)
	return other
}

// slowGlance stands before Glance and takes the time for each download of an image's data.
func slowGlance(t *testing.T, lasting time.Duration) (url string) {
	t.Helper()
	target, err := neturl.Parse("http://127.0.0.1:9292")
	require.NoError(t, err)
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) },
		ModifyResponse: func(r *http.Response) error {
			if strings.HasSuffix(r.Request.URL.Path, "/file") {
				data, err := io.ReadAll(r.Body)
				if err != nil {
					return err
				}
				const parts = 100
				r.Body = io.NopCloser(&slowReader{data: data, part: len(data)/parts + 1, pause: lasting / parts})
			}
			return nil
		},
		FlushInterval: -1,
	}
	server := httptest.NewServer(proxy)
	t.Cleanup(server.Close)
	return server.URL
}

type slowReader struct {
	data  []byte
	part  int
	pause time.Duration
}

func (s *slowReader) Read(b []byte) (int, error) {
	if len(s.data) == 0 {
		return 0, io.EOF
	}
	time.Sleep(s.pause)
	n := copy(b, s.data[:min(s.part, len(s.data))])
	s.data = s.data[n:]
	return n, nil
}

// TestCacheImageSlowly takes several times rpc_response_timeout, of a conductor that has a short one: the agent's signs of life keep
// it waiting, and the progress can be seen. A boot that comes meanwhile shares the download.
func TestCacheImageSlowly(t *testing.T) {
	const responseTimeout, lasting = 10 * time.Second, 25 * time.Second // a sign of life comes at half of the former
	data := distinct(t)
	id := uploadImage(t, data)
	withOptions(t, shared, "[glance]\napi_servers = "+slowGlance(t, lasting)+"\n")
	began := logEnd(t)
	type answer struct {
		results map[string]string
		err     error
	}
	answers := make(chan answer, 1)
	ctx := within(t, 3*time.Minute)
	started := time.Now()
	go func() {
		results, err := shared.Plane.CacheImages(ctx, shared.Host, responseTimeout, id)
		answers <- answer{results, err}
	}()
	eventually(t, 30*time.Second, "progress in the list", func(context.Context) (bool, error) {
		out, err := imageCommand(t, "list")
		return strings.Contains(out, id+": importing") && strings.Contains(out, fmt.Sprintf(" of %.1f MiB (", float64(len(data))/(1<<20))), err
	})
	server := create(t, cloud.NewServer{Image: id})
	got := <-answers
	require.NoError(t, got.err, "no time-out")
	require.Equal(t, map[string]string{id: "cached"}, got.results)
	require.Greater(t, time.Since(started), lasting)
	statusIn(t, 2*time.Minute, server, "ACTIVE")
	require.Equal(t, []string{id}, imagesImported(t, began), "one download for both")
}

// sortedLike brings the end, which the API and the conductor send in either order after the cast, to the end.
func sortedLike(steps []string) []string {
	rank := func(s string) int {
		return slices.Index([]string{"start", "call", "progress", "end"}, s[strings.LastIndexAny(s, ". ")+1:])
	}
	slices.SortStableFunc(steps, func(a, b string) int { return rank(a) - rank(b) })
	return steps
}

// TestImageCommand works with the store of a running agent.
func TestImageCommand(t *testing.T) {
	data := distinct(t)
	file := filepath.Join(t.TempDir(), "pre-load.tar.gz")
	require.NoError(t, os.WriteFile(file, data, 0o600))
	local := "local-" + shared.Host
	out, err := imageCommand(t, "import", "--name", shared.Host, file)
	require.NoError(t, err)
	require.Contains(t, out, "imported "+local)
	t.Cleanup(func() { _ = shared.Agent.Command(context.Background(), "image", "rm", local, local+"-again").Run() }) // of a test that failed

	// The same bytes in Glance are there already.
	began := logEnd(t)
	id := uploadImage(t, data)
	server := boot(t, cloud.NewServer{Image: id})
	require.Empty(t, imagesImported(t, began), "the boot downloads nothing")
	images := stored(t)
	require.Equal(t, []string{server.ID}, images[id].Instances)
	require.Equal(t, images[local].Path, images[id].Path, "stored once")
	require.Equal(t, []string{local}, images[id].SameContent)
	out, err = imageCommand(t, "show", id)
	require.NoError(t, err)
	require.Contains(t, out, server.ID)
	require.Regexp(t, "stored once with: +"+local, out)

	_, err = imageCommand(t, "rm", id)
	require.ErrorContains(t, err, server.ID, "the refusal names the server")
	require.ErrorContains(t, err, "openstack server delete")
	out, err = imageCommand(t, "prune", "--unused-for", "0s", "--dry-run", "-f", "json")
	require.NoError(t, err)
	require.NotContains(t, out, id)
	require.Contains(t, out, local)

	// An export comes back identical.
	archive := filepath.Join(t.TempDir(), "export.tar.xz")
	_, err = imageCommand(t, "export", id, archive)
	require.NoError(t, err)
	_, err = imageCommand(t, "export", id, archive)
	require.ErrorContains(t, err, "--force")
	_, err = imageCommand(t, "import", "--name", shared.Host+"-again", archive)
	require.NoError(t, err)
	images = stored(t)
	if diff := cmp.Diff(describeTree(t, images[id].Path), describeTree(t, images[local+"-again"].Path)); diff != "" {
		t.Errorf("tree after export and import (-want +got):\n%s", diff)
	}
	_, err = imageCommand(t, "import", "--glance", uuid.NewString())
	require.ErrorContains(t, err, "image not found")

	remove(t, server.ID)
	_, err = imageCommand(t, "rm", id, local, local+"-again")
	require.NoError(t, err)
	images = stored(t)
	require.NotContains(t, images, id)
	require.NotContains(t, images, local)
}

// describeTree lists all that a root file system is made of.
func describeTree(t *testing.T, root string) map[string]string {
	t.Helper()
	out := map[string]string{}
	require.NoError(t, filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
		require.NoError(t, err)
		rel, err := filepath.Rel(root, path)
		require.NoError(t, err)
		var st syscall.Stat_t
		require.NoError(t, syscall.Lstat(path, &st))
		text := fmt.Sprintf("%o %d:%d %d links, %d.%09d", st.Mode, st.Uid, st.Gid, st.Nlink, st.Mtim.Sec, st.Mtim.Nsec)
		switch st.Mode & syscall.S_IFMT {
		case syscall.S_IFREG:
			data, err := os.ReadFile(path)
			require.NoError(t, err)
			text += fmt.Sprintf(" %x", sha256.Sum256(data))
		case syscall.S_IFLNK:
			target, err := os.Readlink(path)
			require.NoError(t, err)
			text += " " + target
		}
		out[rel] = text
		return nil
	}))
	return out
}

// TestImageCacheManager: an unused image goes when it is old enough, one in use does not.
func TestImageCacheManager(t *testing.T) {
	unused, used := uploadImage(t, distinct(t)), uploadImage(t, distinct(t))
	server := boot(t, cloud.NewServer{Image: used})
	_, err := imageCommand(t, "import", "--glance", unused)
	require.NoError(t, err)
	kept := uploadImage(t, distinct(t))
	_, err = imageCommand(t, "import", "--keep", "--glance", kept)
	require.NoError(t, err)

	t.Cleanup(func() { require.NoError(t, shared.Agent.Command(context.Background(), "image", "rm", kept).Run()) })
	withOptions(t, shared, "[image_cache]\nmanager_interval = 1\nremove_unused_original_minimum_age_seconds = 1\n")
	eventually(t, 30*time.Second, "the unused image to go", func(context.Context) (bool, error) {
		_, there := stored(t)[unused]
		return !there, nil
	})
	images := stored(t)
	require.Equal(t, []string{server.ID}, images[used].Instances)
	require.True(t, images[kept].Keep)
	remove(t, server.ID)
	eventually(t, 30*time.Second, "the image to go after its server", func(context.Context) (bool, error) {
		_, there := stored(t)[used]
		return !there, nil
	})
	require.Contains(t, stored(t), kept)
	nothingStaged(t)
}

// TestKillAgentDuringImport: the command says so, and the next start leaves nothing half-done.
func TestKillAgentDuringImport(t *testing.T) {
	_, err := imageCommand(t, "import", "--glance", shared.Busybox)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, shared.StartAgent(context.Background())) }) // unless it runs
	data := distinct(t)
	local := "local-" + shared.Host + "-killed"
	cmd := shared.Agent.Command(within(t, time.Minute), "image", "import", "--name", shared.Host+"-killed", "-")
	body, err := cmd.StdinPipe()
	require.NoError(t, err)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	require.NoError(t, cmd.Start())
	_, err = body.Write(data[:len(data)/2])
	require.NoError(t, err)
	eventually(t, 20*time.Second, "the import to begin", func(context.Context) (bool, error) { return len(staged(t)) > 0, nil })
	out, err := imageCommand(t, "list")
	require.NoError(t, err)
	require.Contains(t, out, local+": importing")
	killAgent(t)
	require.Error(t, cmd.Wait())
	_ = body.Close()
	require.Contains(t, stderr.String(), "the agent ended")
	require.Contains(t, stderr.String(), "nothing half-done")

	startAgent(t)
	nothingStaged(t)
	require.NotContains(t, stored(t), local)
	again := filepath.Join(t.TempDir(), "again.tar.gz")
	require.NoError(t, os.WriteFile(again, data, 0o600))
	_, err = imageCommand(t, "import", "--name", shared.Host+"-killed", again)
	require.NoError(t, err)
	_, err = imageCommand(t, "rm", local)
	require.NoError(t, err)
}
