//go:build functional

package functional

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/tests/functional/cloud"
)

// glanceProxy stands between the agent and Glance, and spoils downloads.
type glanceProxy struct {
	mu     sync.Mutex // guards the fields below
	cut    int64      // bytes after which a connection ends; 0: never
	rate   int64      // bytes in a second; 0: as they come
	ranges []string   // of the downloads

	gate chan struct{} // holds downloads until it is closed; nil: none
}

func (p *glanceProxy) set(cut, rate int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut, p.rate = cut, rate
}

// hold makes downloads wait before their first byte until the returned function is called.
func (p *glanceProxy) hold() (release func()) {
	gate := make(chan struct{})
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gate = gate
	return sync.OnceFunc(func() { close(gate) })
}

func (p *glanceProxy) downloads() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string{}, p.ranges...)
}

// throughProxy puts a proxy between the agent and Glance until the test ends. The agent is started again for it.
func throughProxy(t *testing.T) *glanceProxy {
	t.Helper()
	target, err := url.Parse(shared.Admin.Endpoint(cloud.Image))
	require.NoError(t, err)
	p := &glanceProxy{}
	server := httptest.NewServer(&httputil.ReverseProxy{
		Rewrite:        func(r *httputil.ProxyRequest) { r.SetURL(target) },
		ModifyResponse: p.spoil,
		FlushInterval:  -1,
	})
	t.Cleanup(server.Close)
	// Until then. What the proxy holds back is not to be asked for again.
	withOptions(t, shared, "[glance]\nendpoint_override = "+server.URL+"\n[lxc]\nimage_stall_timeout = 600\n")
	return p
}

func (p *glanceProxy) spoil(r *http.Response) error {
	if !strings.HasSuffix(r.Request.URL.Path, "/file") {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ranges = append(p.ranges, r.Request.Header.Get("Range"))
	r.Body = &spoiledBody{ReadCloser: r.Body, gate: p.gate, left: r.Request.Context().Done(), cut: p.cut, rate: p.rate, began: time.Now()}
	return nil
}

type spoiledBody struct {
	io.ReadCloser
	gate         <-chan struct{} // nil: open
	left         <-chan struct{} // closed when the client has gone
	cut, rate, n int64
	began        time.Time
}

func (b *spoiledBody) Read(p []byte) (int, error) {
	if b.gate != nil {
		select {
		case <-b.gate:
		case <-b.left:
			return 0, context.Canceled
		}
	}
	if b.cut > 0 && b.n >= b.cut {
		panic(http.ErrAbortHandler)
	}
	n, err := b.ReadCloser.Read(p[:min(len(p), 64<<10)])
	b.n += int64(n)
	if b.rate > 0 {
		time.Sleep(time.Until(b.began.Add(time.Duration(b.n) * time.Second / time.Duration(b.rate))))
	}
	return n, err
}

// largeImage uploads a root file system that takes its time to download, with bytes that no store has yet.
func largeImage(t *testing.T, megabytes string) string {
	t.Helper()
	dir := t.TempDir()
	shell(t, `cd `+dir+`; mkdir tree; tar -C tree --numeric-owner -xpf `+shared.Plane.BusyboxPath()+`
head -c `+megabytes+`M /dev/urandom >tree/random; sha256sum <tree/random | cut -d' ' -f1 >tree/sum; tar -C tree --numeric-owner -czf large.tar.gz .`)
	return upload(t, filepath.Join(dir, "large.tar.gz"), "raw", nil)
}

func requireWhole(t *testing.T, server cloud.Server) {
	t.Helper()
	require.Equal(t, inside(t, server.ID, "cat", "/sum"), inside(t, server.ID, "/bin/sh", "-c", "sha256sum </random | cut -d' ' -f1"))
}

// TestDownloadIsCut: a connection to Glance that ends again and again delays a boot, no more.
func TestDownloadIsCut(t *testing.T) {
	image := largeImage(t, "40")
	p := throughProxy(t)
	p.set(5<<20, 0)
	server := boot(t, cloud.NewServer{Image: image, Networks: "none"})
	requireWhole(t, server)
	ranges := p.downloads()
	t.Logf("downloads: %q", ranges)
	require.GreaterOrEqual(t, len(ranges), 8)
	require.NotContains(t, ranges[1:], "", "the rest was asked for, not all of it")
}

// TestKilledWhileDownloading: the log says how far a slow download is; an agent that is killed in the middle of it leaves nothing
// of it, and finishes the build after its next start.
func TestKilledWhileDownloading(t *testing.T) {
	image := largeImage(t, "30")
	p := throughProxy(t)
	p.set(0, 2<<20)
	_, from, err := shared.Agent.Log(0)
	require.NoError(t, err)
	id := create(t, cloud.NewServer{Image: image, Networks: "none"})
	eventually(t, time.Minute, "progress in the log", func(context.Context) (bool, error) {
		text, _, err := shared.Agent.Log(from)
		for line := range strings.Lines(text) {
			if strings.Contains(line, "image import goes on") && strings.Contains(line, image) {
				t.Log(strings.TrimSpace(line))
				return true, err
			}
		}
		return false, err
	})
	staging := filepath.Join(shared.Agent.StateDir(), "compute-agent/images/staging")
	require.NotEmpty(t, entries(t, staging), "an import is in flight")
	killAgent(t)
	p.set(0, 0)
	startAgent(t)
	server := statusIn(t, 2*time.Minute, id, "ACTIVE", "ERROR")
	require.Equal(t, "ACTIVE", server.Status)
	requireWhole(t, server)
	eventually(t, 10*time.Second, "an empty staging directory", func(context.Context) (bool, error) { return len(entries(t, staging)) == 0, nil })
}

func entries(t *testing.T, dir string) []string {
	t.Helper()
	list, err := os.ReadDir(dir)
	require.NoError(t, err)
	var names []string
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}
