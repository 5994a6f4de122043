package barbican

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"

	"github.com/compute-agent/compute-agent/internal/openstack"
)

// Errors that callers may test. One that is none of them, such as openstack.ErrUnreachable, may be gone with
// another try or on another host.
var (
	// ErrNotFound: there is no such certificate, or not any more: Barbican forgets what has expired.
	ErrNotFound = errors.New("certificate not found")
	// ErrRefused: Barbican answers, but not with the certificate; the user may not read it, for example.
	ErrRefused = errors.New("certificate cannot be retrieved")
	// ErrFormat: there is something else under that id.
	ErrFormat = errors.New("not a certificate")
)

// maxPayload bounds a certificate. Barbican itself takes no secret above 20,000 bytes unless told to
// ([DEFAULT] max_allowed_secret_in_bytes).
const maxPayload = 64 << 10

// Client speaks to Barbican. Safe for concurrent use.
type Client struct {
	service *openstack.Service
}

// New returns a client. The service's type is key-manager, its version v1. It does not touch the network.
func New(service *openstack.Service) *Client { return &Client{service: service} }

var idForm = regexp.MustCompile(`^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$`)

// Certificate returns the certificate of that id, a secret of the type certificate with one certificate in PEM.
func (c *Client) Certificate(ctx context.Context, id string) (*x509.Certificate, error) {
	if !idForm.MatchString(id) { // ids come from tenants, and become a part of an address
		return nil, fmt.Errorf("%w: the id is not a UUID", ErrNotFound)
	}
	var secret struct {
		Type         string            `json:"secret_type"`
		ContentTypes map[string]string `json:"content_types"`
	}
	path := "/secrets/" + id
	if err := c.service.Do(ctx, openstack.Request{Method: http.MethodGet, Path: path, Into: &secret, User: true}); err != nil {
		return nil, classify(err)
	}
	if secret.Type != "certificate" {
		return nil, fmt.Errorf("%w: the secret is of the type %+.40q", ErrFormat, secret.Type)
	}
	payload, err := c.payload(ctx, path, secret.ContentTypes["default"])
	if err != nil {
		return nil, err
	}
	return parse(payload)
}

// payload reads what a secret holds. A secret without payload has no content type, either.
func (c *Client) payload(ctx context.Context, path, contentType string) ([]byte, error) {
	if contentType == "" {
		return nil, fmt.Errorf("%w: the secret has no payload", ErrFormat)
	}
	resp, err := c.service.Stream(ctx, openstack.Request{
		Method: http.MethodGet, Path: path + "/payload", Header: map[string]string{"Accept": contentType}, User: true,
	})
	if err != nil {
		return nil, classify(err)
	}
	defer resp.Body.Close() //nolint:errcheck // only read
	payload, err := io.ReadAll(io.LimitReader(resp.Body, maxPayload+1))
	if err != nil {
		return nil, fmt.Errorf("read certificate: %w", err)
	}
	if len(payload) > maxPayload {
		return nil, fmt.Errorf("%w: it has more than %d bytes", ErrFormat, maxPayload)
	}
	return payload, nil
}

func parse(payload []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(payload)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, fmt.Errorf("%w: no certificate in PEM", ErrFormat)
	}
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return certificate, nil
}

// classify marks what Barbican, or Keystone's catalog, has decided, as castellan does (get, _get_barbican_client).
func classify(err error) error {
	switch status := openstack.Status(err); {
	case status == http.StatusNotFound:
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	case status != 0 && status != http.StatusServiceUnavailable, errors.Is(err, openstack.ErrNoEndpoint), errors.Is(err, openstack.ErrNoIdentity):
		return fmt.Errorf("%w: %w", ErrRefused, err)
	}
	return err
}
