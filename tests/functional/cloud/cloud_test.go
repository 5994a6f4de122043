package cloud

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// fakeCloud answers to the identity API with a catalog that leads to handler.
func fakeCloud(t *testing.T, handler http.HandlerFunc) *Client {
	t.Helper()
	var server *httptest.Server
	server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v3/auth/tokens" {
			handler(w, r)
			return
		}
		w.Header().Set("X-Subject-Token", "token")
		_, _ = w.Write([]byte(`{"token": {"project": {"id": "p"}, "catalog": [
			{"type": "compute", "endpoints": [{"interface": "internal", "url": "http://nowhere"}, {"interface": "public", "url": "` + server.URL + `/v2.1/"}]}]}}`))
	}))
	t.Cleanup(server.Close)
	c, err := New(t.Context(), Auth{URL: server.URL + "/v3", Username: "u", Password: "p", Project: "p"})
	require.NoError(t, err)
	require.Equal(t, "p", c.ProjectID())
	return c
}

func TestRequestsCarryTokenAndVersion(t *testing.T) {
	t.Parallel()
	c := fakeCloud(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v2.1/servers/s" || r.Header.Get("X-Auth-Token") != "token" || r.Header.Get("Openstack-Api-Version") != "compute 2.79" {
			http.Error(w, r.URL.Path, http.StatusTeapot)
			return
		}
		_, _ = w.Write([]byte(`{"server": {"id": "s", "status": "ERROR", "OS-EXT-STS:task_state": null, "fault": {"message": "why"},
			"addresses": {"net": [{"addr": "10.0.0.1", "OS-EXT-IPS-MAC:mac_addr": "fa:16:3e:0:0:1"}]}}}`))
	})
	server, err := c.Server(t.Context(), "s")
	require.NoError(t, err)
	require.Equal(t, "10.0.0.1", server.IP())
	_, err = c.WaitStatus(t.Context(), "s", "ACTIVE")
	require.ErrorContains(t, err, "is in ERROR: why")
	_, err = c.WaitStatus(t.Context(), "s", "ERROR")
	require.NoError(t, err)
}

func TestErrorsHaveTheirStatus(t *testing.T) {
	t.Parallel()
	c := fakeCloud(t, func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "gone", http.StatusNotFound) })
	_, err := c.Server(t.Context(), "s")
	require.True(t, IsStatus(err, http.StatusNotFound))
	require.ErrorContains(t, err, "404 gone")
	require.NoError(t, c.DeleteServer(t.Context(), "s"))
	require.NoError(t, c.WaitGone(t.Context(), "s"))
	require.ErrorContains(t, c.Do(t.Context(), http.MethodGet, Image, "/v2/images", nil, nil), "no image service")
	err = c.Do(t.Context(), http.MethodPost, Compute, "/x", strings.NewReader("raw"), nil)
	require.True(t, IsStatus(err, http.StatusNotFound))
}

func TestPollNamesWhatItWaitedFor(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	err := Poll(ctx, time.Millisecond, "the moon", func() (bool, error) { return false, nil })
	require.ErrorContains(t, err, "wait for the moon")
	require.ErrorIs(t, err, context.DeadlineExceeded)
}
