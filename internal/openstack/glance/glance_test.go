package glance

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/internal/openstack/ostest"
	"github.com/compute-agent/compute-agent/internal/reqctx"
)

func newFake(tb testing.TB, handler http.HandlerFunc) *Client {
	tb.Helper()
	fake := ostest.NewFake(tb, map[string]http.Handler{"image": http.StripPrefix("/v2", handler)})
	return New(Options{Service: fake.Service("glance", "image", "v2"), NumRetries: 2})
}

func recorded(tb testing.TB, name string) string {
	tb.Helper()
	raw, err := os.ReadFile(filepath.Join("testdata", "zed", name))
	require.NoError(tb, err)
	return string(raw)
}

func TestShow(t *testing.T) {
	t.Parallel()
	image := recorded(t, "image.json")
	var token atomic.Value
	c := newFake(t, func(w http.ResponseWriter, r *http.Request) {
		token.Store(r.Header.Get("X-Auth-Token"))
		_, _ = io.WriteString(w, image)
	})
	request := reqctx.Admin()
	request.AuthToken = "user-token"
	got, err := c.Show(reqctx.With(t.Context(), request), "fe6c729f-e7d0-4b53-9192-7ef9b842f13d")
	require.NoError(t, err)
	require.Equal(t, "user-token", token.Load())
	require.Equal(t, "busybox-rootfs", got.Name)
	require.Equal(t, int64(1037203), *got.Size)
	require.Equal(t, "sha512", got.OSHashAlgo)
	require.Equal(t, "bare", got.ContainerFormat)
	require.Equal(t, 32, got.MinRAM)
	require.Equal(t, map[string]any{
		"owner_specified.openstack.md5": "", "owner_specified.openstack.sha256": "",
		"owner_specified.openstack.object": "images/busybox-rootfs", "stores": "fs",
	}, got.Properties)
}

func TestErrors(t *testing.T) {
	t.Parallel()
	notFound := recorded(t, "image-404.html")
	for _, tt := range []struct {
		status int
		want   error
		calls  int32
	}{
		{400, ErrBadRequest, 1},
		{401, ErrNotAuthorized, 2}, // the agent's own token is renewed once
		{403, ErrNotAuthorized, 1},
		{404, ErrNotFound, 1},
		{409, ErrConflict, 1},
		{413, ErrQuotaExceeded, 1},
	} {
		var calls atomic.Int32
		c := newFake(t, func(w http.ResponseWriter, _ *http.Request) {
			calls.Add(1)
			w.WriteHeader(tt.status)
			_, _ = io.WriteString(w, notFound)
		})
		_, err := c.Show(t.Context(), "i")
		require.ErrorIs(t, err, tt.want)
		require.Equal(t, tt.calls, calls.Load(), tt.status)
		_, _, err = c.Open(t.Context(), "i", 0)
		require.ErrorIs(t, err, tt.want)
	}
}

func TestRetriesGoToTheNextServer(t *testing.T) {
	t.Parallel()
	var asked [2]atomic.Int32
	handler := func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/bad") {
			asked[0].Add(1)
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		asked[1].Add(1)
		_, _ = io.WriteString(w, `{"id": "i"}`)
	}
	fake := ostest.NewFake(t, map[string]http.Handler{"image": http.HandlerFunc(handler)})
	c := New(Options{Service: fake.Service("glance", "image", "v2"), APIServers: []string{fake.URL + "/image/bad", fake.URL + "/image/good"}, NumRetries: 1})
	for range 2 { // whatever the order of the list, the bad one is asked at least once
		_, err := c.Show(t.Context(), "i")
		require.NoError(t, err)
	}
	require.Equal(t, int32(2), asked[1].Load())
	require.Positive(t, asked[0].Load())

	c = New(Options{Service: fake.Service("glance", "image", "v2"), APIServers: []string{fake.URL + "/image/bad"}, NumRetries: 1})
	_, err := c.Show(t.Context(), "i")
	require.ErrorIs(t, err, ErrUnreachable)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = c.Show(ctx, "i")
	require.ErrorIs(t, err, context.Canceled)
}

func TestOpen(t *testing.T) {
	t.Parallel()
	const data = "0123456789"
	for _, tt := range []struct {
		name   string
		offset int64
		answer http.HandlerFunc
		want   string
		size   int64
		err    string
	}{
		{"whole", 0, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, data) }, data, 10, ""},
		{"resumed", 4, func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Range") != "bytes=4-" {
				w.WriteHeader(http.StatusBadRequest)
				return
			}
			w.Header().Set("Content-Range", "bytes 4-9/10")
			w.WriteHeader(http.StatusPartialContent)
			_, _ = io.WriteString(w, data[4:])
		}, data[4:], 6, ""},
		{"service sends all", 4, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, data) }, data[4:], 6, ""},
		{"service sends another part", 4, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Range", "bytes 0-9/10")
			w.WriteHeader(http.StatusPartialContent)
			_, _ = io.WriteString(w, data)
		}, "", 0, "another range"},
		{"shorter than before", 40, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, data) }, "", 0, "EOF"},
		{"no data", 0, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }, "", 0, ErrNoData.Error()},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := newFake(t, tt.answer)
			body, size, err := c.Open(t.Context(), "i", tt.offset)
			if tt.err != "" {
				require.ErrorContains(t, err, tt.err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, tt.size, size)
			got, err := io.ReadAll(body)
			require.NoError(t, err)
			require.NoError(t, body.Close())
			require.Equal(t, tt.want, string(got))
		})
	}
}

func TestUploadAndUpdate(t *testing.T) {
	t.Parallel()
	var calls atomic.Int32
	var sent, kind atomic.Value
	c := newFake(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		sent.Store(string(body))
		kind.Store(r.Header.Get("Content-Type"))
		if calls.Add(1) == 3 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	require.NoError(t, c.Upload(t.Context(), "i", strings.NewReader("data")))
	require.Equal(t, "data", sent.Load())
	require.Equal(t, "application/octet-stream", kind.Load())
	_, err := c.Update(t.Context(), "i", map[string]any{"name": "n", "a/b": nil})
	require.NoError(t, err)
	require.JSONEq(t, `[{"op":"add","path":"/a~1b","value":null},{"op":"add","path":"/name","value":"n"}]`, sent.Load().(string))
	require.Equal(t, "application/openstack-images-v2.1-json-patch", kind.Load())

	err = c.Upload(t.Context(), "i", strings.NewReader("data"))
	require.ErrorIs(t, err, ErrUnreachable)
	require.Equal(t, int32(3), calls.Load(), "what has been read cannot be sent again")
	broken := errors.New("disk")
	require.ErrorIs(t, c.Upload(t.Context(), "i", iotest.ErrReader(broken)), broken)
}
