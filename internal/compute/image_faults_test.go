package compute

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/imagesync"
	"github.com/compute-agent/compute-agent/internal/nova/exception"
	"github.com/compute-agent/compute-agent/internal/nova/object"
	"github.com/compute-agent/compute-agent/internal/openstack"
	"github.com/compute-agent/compute-agent/internal/openstack/glance"
	"github.com/compute-agent/compute-agent/internal/openstack/ostest"
)

// faultyGlance serves one image over HTTP and breaks off, answers with errors, falls silent
// or ignores ranges, as the test says for each request.
type faultyGlance struct {
	data  []byte
	fault func(request int) fault

	mu     sync.Mutex // guards ranges
	ranges []string
}

// fault is what goes wrong with one answer.
type fault struct {
	status  int  // instead of the data; 0: none
	cut     int  // bytes after which the connection is cut; -1: never
	silent  bool // instead of cut, say nothing more
	ignores bool // send all whatever range is asked for
	flip    bool // damage a byte under way
}

// ServeHTTP implements http.Handler.
func (f *faultyGlance) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	f.ranges = append(f.ranges, r.Header.Get("Range"))
	is := f.fault(len(f.ranges))
	f.mu.Unlock()
	if is.status != 0 {
		w.WriteHeader(is.status)
		return
	}
	data, offset := bytes.Clone(f.data), 0
	if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &offset); err == nil && !is.ignores {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", offset, len(data)-1, len(data)))
		w.Header().Set("Content-Length", strconv.Itoa(len(data)-offset))
		w.WriteHeader(http.StatusPartialContent)
		data = data[offset:]
	} else {
		w.Header().Set("Content-Length", strconv.Itoa(len(data)))
	}
	if is.flip {
		data[len(data)/2] ^= 1
	}
	if is.cut < 0 || is.cut >= len(data) {
		_, _ = w.Write(data)
		return
	}
	_, _ = w.Write(data[:is.cut])
	_ = http.NewResponseController(w).Flush()
	if is.silent {
		<-r.Context().Done()
	}
	panic(http.ErrAbortHandler) // ends the connection
}

// incompressible is a root file system in a gzip of about 400 KB.
func incompressible(t testing.TB) []byte {
	t.Helper()
	content := make([]byte, 400_000)
	random := rand.NewChaCha8([32]byte{1})
	_, _ = random.Read(content)
	var buf bytes.Buffer
	zip := gzip.NewWriter(&buf)
	w := tar.NewWriter(zip)
	for name, text := range map[string][]byte{"etc/os-release": nil, "sbin/init": nil, "content": content} {
		require.NoError(t, w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(text))}))
		_, err := w.Write(text)
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	require.NoError(t, zip.Close())
	return buf.Bytes()
}

// syncThrough imports the image through the fault-injecting service.
func syncThrough(t *testing.T, f *faultyGlance) (imagesync.Image, *imagesync.Store, error) {
	t.Helper()
	fake := ostest.NewFake(t, map[string]http.Handler{"image": http.StripPrefix("/v2", f)})
	images, err := imagesync.Open(imagesync.Options{
		Dir: filepath.Join(t.TempDir(), "images"), ReserveBytes: 1, Retries: 3, RetryDelay: time.Millisecond, StallTimeout: time.Second,
	})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, images.Close()) })
	m := New(Options{HostArch: "x86_64"}, Deps{Images: images, Glance: glance.New(glance.Options{
		Service: fake.Pool.Service(openstack.ServiceOptions{Section: "glance", Types: []string{"image"}, Version: "v2", EndpointOverride: fake.URL + "/image"}),
	})})
	sum := sha512.Sum512(f.data)
	size := int64(len(f.data))
	ctx, cancel := context.WithTimeout(user(t), patience)
	t.Cleanup(cancel)
	img, err := m.syncImage(ctx, &object.Image{
		ID: "36adbebc-e44e-480c-a879-237d84122861", Size: &size, OSHashAlgo: "sha512", OSHashValue: hex.EncodeToString(sum[:]), DiskFormat: "raw", ContainerFormat: "bare",
	}, nil)
	return img, images, err
}

// TestFaultyGlance: connections that break at any offset, one after the other, in every way, cost no byte twice that had arrived.
func TestFaultyGlance(t *testing.T) {
	t.Parallel()
	data := incompressible(t)
	for seed := range uint64(12) {
		t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) {
			t.Parallel()
			random := rand.New(rand.NewPCG(seed, 0))
			broken := 0
			f := &faultyGlance{data: data, fault: func(int) fault {
				broken++
				is := fault{cut: random.IntN(len(data) / 4)}
				switch kind := random.IntN(10); {
				case kind == 0 && broken < 8: // rare enough for three attempts in a row
					is.status = http.StatusServiceUnavailable
				case kind == 1:
					is.silent = true
				case kind == 2:
					is.ignores, is.cut = true, -1
				case broken > 20:
					is.cut = -1
				}
				return is
			}}
			img, _, err := syncThrough(t, f)
			require.NoError(t, err, "%q", f.ranges)
			info, err := os.Stat(filepath.Join(img.Path, "content"))
			require.NoError(t, err)
			require.EqualValues(t, 400_000, info.Size())
			last := int64(-1)
			for _, r := range f.ranges {
				offset := int64(0)
				_, _ = fmt.Sscanf(r, "bytes=%d-", &offset)
				require.GreaterOrEqual(t, offset, last, "%q", f.ranges)
				last = offset
			}
			t.Logf("%d requests: %s", len(f.ranges), strings.Join(f.ranges, " "))
		})
	}
}

// TestFaultyGlanceEnds: what does not get better ends with an error that says so, and leaves nothing.
func TestFaultyGlanceEnds(t *testing.T) {
	t.Parallel()
	data := incompressible(t)
	for name, tc := range map[string]struct {
		fault  fault
		class  string
		reason string
	}{
		"cut at the beginning":    {fault{cut: 0}, "", "no progress at byte 0"},
		"silent at the beginning": {fault{cut: 0, silent: true}, "", "silent"},
		"not found":               {fault{status: http.StatusNotFound}, "ImageNotFound", ""},
		"forbidden":               {fault{status: http.StatusForbidden}, "ImageNotAuthorized", ""},
		"no data":                 {fault{status: http.StatusNoContent}, "ImageUnacceptable", "no data"},
		"damaged":                 {fault{cut: -1, flip: true}, "ImageUnacceptable", "does not match its hash"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, images, err := syncThrough(t, &faultyGlance{data: data, fault: func(int) fault { return tc.fault }})
			require.Error(t, err)
			class, _ := exception.ClassOf(err)
			require.Equal(t, tc.class, class)
			require.ErrorContains(t, err, tc.reason)
			all, lerr := images.List(t.Context())
			require.NoError(t, lerr)
			require.Empty(t, all)
		})
	}
}

// TestImageStoreIsFull: a build whose image finds no room goes on elsewhere, since another host may have it; where it
// may not, its fault says so. Nothing is left either way, and not one byte is fetched.
func TestImageStoreIsFull(t *testing.T) {
	t.Parallel()
	const message = "no space left in the image store"
	for name, c := range map[string]struct {
		args  map[string]any
		fault string
	}{
		"rescheduled":   {nil, ""},
		"no alternates": {map[string]any{"host_list": []any{}}, message},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			dir := filepath.Join(t.TempDir(), "images")
			full, err := imagesync.Open(imagesync.Options{Dir: dir, ReserveBytes: 1 << 60, Retries: 1})
			require.NoError(t, err)
			t.Cleanup(func() { require.NoError(t, full.Close()) })
			w.Images = full
			w.restarted()
			w.build(c.args)
			w.requireOutcome(failing{name: name, fault: c.fault})
			require.NotContains(t, strings.Join(w.trail.all(), "\n"), "glance GET")
			require.Empty(t, w.images())
			for _, part := range []string{"images", "aliases", "refs", "staging"} {
				left, err := os.ReadDir(filepath.Join(dir, part))
				require.NoError(t, err)
				require.Empty(t, left, part)
			}
			var payload struct {
				Exception string `json:"exception"`
			}
			for _, told := range w.sender.told {
				if told.EventType == "compute.instance.create.error" {
					require.NoError(t, json.Unmarshal(told.Payload, &payload))
				}
			}
			require.Regexp(t, `^ComputeResourcesUnavailable\(.*`+message, payload.Exception)
			if c.fault == "" {
				properties := string(w.nova.Casts("build_instances")[0].Args["filter_properties"])
				require.Contains(t, properties, "Insufficient compute resources: sync image "+imageID+": "+message)
			}

			// The same host takes it once there is room.
			w.Images = w.stored
			w.restarted()
			w.nova.Update(uuid, map[string]any{"vm_state": "building", "task_state": "scheduling"})
			w.build(c.args)
			require.Equal(t, "active/-/"+testHost, w.nova.States(uuid))
			require.Len(t, w.images(), 1)
			require.Contains(t, strings.Join(w.trail.all(), "\n"), "glance GET")
		})
	}
}
