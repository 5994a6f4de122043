package barbican_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/compute-agent/compute-agent/internal/openstack"
	"github.com/compute-agent/compute-agent/internal/openstack/barbican"
	"github.com/compute-agent/compute-agent/internal/openstack/ostest"
	"github.com/compute-agent/compute-agent/internal/reqctx"
)

const id = "125e6199-2de4-46e3-b091-8e2401ef0d63"

func certificate(tb testing.TB) []byte {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(tb, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "client"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(tb, err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// secret is what a fake Barbican has under the id; the answers are of the form of Barbican 15.
type secret struct {
	metadata string
	payload  []byte
	status   int // of the metadata's answer, 0: 200
}

func userContext(tb testing.TB, url string) context.Context {
	tb.Helper()
	request := reqctx.Admin()
	request.AuthToken = "the-users-token"
	request.ServiceCatalog = []byte(`[{"type": "key-manager", "name": "barbican", "endpoints": [{"region": "RegionOne", "publicURL": "` + url + `/key-manager"}]}]`)
	return reqctx.With(tb.Context(), request)
}

func serve(t *testing.T, s secret) (*barbican.Client, context.Context) {
	t.Helper()
	fake := ostest.NewFake(t, map[string]http.Handler{"key-manager": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Auth-Token") != "the-users-token" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		switch {
		case s.status != 0:
			w.WriteHeader(s.status)
			_, _ = io.WriteString(w, `{"code": 403, "title": "Forbidden", "description": "Secret retrieval attempt not allowed - please review your user/project privileges"}`)
		case r.URL.Path == "/v1/secrets/"+id:
			_, _ = io.WriteString(w, s.metadata)
		case r.URL.Path == "/v1/secrets/"+id+"/payload" && r.Header.Get("Accept") == "application/octet-stream":
			_, _ = w.Write(s.payload)
		default:
			w.WriteHeader(http.StatusNotAcceptable)
		}
	})})
	service := fake.Pool.Service(openstack.ServiceOptions{Section: "barbican", Types: []string{"key-manager"}, Version: "v1", Interfaces: []string{"public"}})
	return barbican.New(service), userContext(t, fake.URL)
}

const metadata = `{"created": "2026-11-21T20:00:00", "updated": "2026-11-21T20:00:00", "status": "ACTIVE", "name": "Client", "secret_type": "certificate",
	"expiration": null, "algorithm": "RSA", "bit_length": 256, "mode": "cbc", "creator_id": "c", "content_types": {"default": "application/octet-stream"},
	"secret_ref": "http://127.0.0.1:9311/v1/secrets/` + id + `"}`

func TestCertificate(t *testing.T) {
	t.Parallel()
	text := certificate(t)
	c, ctx := serve(t, secret{metadata: metadata, payload: append([]byte("subject=CN = client\n"), text...)})
	got, err := c.Certificate(ctx, id)
	require.NoError(t, err)
	block, _ := pem.Decode(text)
	assert.Equal(t, block.Bytes, got.Raw)
}

func TestErrors(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		secret
		id     string
		want   error
		phrase string
	}{
		"unknown":         {secret{status: 404}, id, barbican.ErrNotFound, "404"},
		"not readable":    {secret{status: 403}, id, barbican.ErrRefused, "403 Forbidden"},
		"broken":          {secret{status: 500}, id, barbican.ErrRefused, "500"},
		"id of a tenant":  {secret{metadata: metadata}, "../secrets/" + id, barbican.ErrNotFound, "not a UUID"},
		"empty id":        {secret{metadata: metadata}, "", barbican.ErrNotFound, "not a UUID"},
		"a password":      {secret{metadata: `{"secret_type": "passphrase", "content_types": {"default": "text/plain"}}`}, id, barbican.ErrFormat, `"passphrase"`},
		"without payload": {secret{metadata: `{"secret_type": "certificate"}`}, id, barbican.ErrFormat, "no payload"},
		"no PEM":          {secret{metadata: metadata, payload: []byte("a certificate")}, id, barbican.ErrFormat, "no certificate in PEM"},
		"a key":           {secret{metadata: metadata, payload: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY"})}, id, barbican.ErrFormat, "no certificate in PEM"},
		"damaged":         {secret{metadata: metadata, payload: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte{0x30, 1}})}, id, barbican.ErrFormat, "x509"},
		"too large":       {secret{metadata: metadata, payload: bytes.Repeat([]byte("A"), 65<<10)}, id, barbican.ErrFormat, "65536"},
	} {
		client, ctx := serve(t, c.secret)
		_, err := client.Certificate(ctx, c.id)
		require.ErrorIs(t, err, c.want, name)
		require.ErrorContains(t, err, c.phrase, name)
	}
}

func TestWithoutBarbican(t *testing.T) {
	t.Parallel()
	service := func(override string) *openstack.Service {
		return new(openstack.Pool).Service(openstack.ServiceOptions{Section: "barbican", Types: []string{"key-manager"}, Version: "v1", EndpointOverride: override})
	}
	request := reqctx.Admin()
	request.AuthToken = "the-users-token"
	ctx := reqctx.With(t.Context(), request)
	_, err := barbican.New(service("")).Certificate(ctx, id)
	require.ErrorIs(t, err, barbican.ErrRefused, "the catalog has none")
	_, err = barbican.New(service("http://127.0.0.1:1")).Certificate(ctx, id)
	require.ErrorIs(t, err, openstack.ErrUnreachable)
	require.NotErrorIs(t, err, barbican.ErrRefused, "another host may reach it")
	_, err = barbican.New(service("http://127.0.0.1:1")).Certificate(t.Context(), id)
	require.ErrorIs(t, err, barbican.ErrRefused, "nobody asks")
}
