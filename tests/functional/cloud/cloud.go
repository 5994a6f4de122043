// Package cloud is a small OpenStack client for the functional tests: one authenticated session, plain JSON requests, and the few
// calls that the tests repeat. It speaks to one control plane on this machine and does not try to be general.
package cloud

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Service types as the identity catalog names them.
const (
	Identity   = "identity"
	Compute    = "compute"
	Image      = "image"
	KeyManager = "key-manager"
	Network    = "network"
	Placement  = "placement"
)

// microversions are the API versions that the tests ask for; older control planes than Zed are not met.
var microversions = map[string]string{
	Compute:   "compute 2.79",
	Placement: "placement 1.29",
}

// Auth says who calls. URL is the identity endpoint with its version, such as http://127.0.0.1:5000/v3.
type Auth struct {
	URL, Username, Password, Project string
}

// Client is one user's session. It is safe for concurrent use.
type Client struct {
	auth Auth
	http *http.Client

	mu        sync.Mutex // guards the fields below
	token     string
	endpoints map[string]string // service type -> public URL
	project   string            // id
}

// Error is an answer with an unexpected status.
type Error struct {
	Method, URL string
	Status      int
	Body        string
}

func (e *Error) Error() string {
	return fmt.Sprintf("%s %s: %d %s", e.Method, e.URL, e.Status, strings.TrimSpace(e.Body))
}

// IsStatus reports whether err is an answer with that HTTP status.
func IsStatus(err error, status int) bool {
	var e *Error
	return errors.As(err, &e) && e.Status == status
}

// New authenticates and reads the catalog.
func New(ctx context.Context, auth Auth) (*Client, error) {
	c := &Client{auth: auth, http: &http.Client{
		Timeout: 2 * time.Minute, // the API makes RPC calls of up to a minute
		// The servers close each connection after one answer; reusing one would meet a reset now and then.
		Transport: &http.Transport{DisableKeepAlives: true},
	}}
	return c, c.Authenticate(ctx)
}

// Authenticate takes a new token and reads the catalog anew.
func (c *Client) Authenticate(ctx context.Context) error {
	domain := map[string]any{"id": "default"}
	body := map[string]any{"auth": map[string]any{
		"identity": map[string]any{
			"methods": []string{"password"},
			"password": map[string]any{"user": map[string]any{
				"name": c.auth.Username, "password": c.auth.Password, "domain": domain,
			}},
		},
		"scope": map[string]any{"project": map[string]any{"name": c.auth.Project, "domain": domain}},
	}}
	var answer struct {
		Token struct {
			Project struct{ ID string }
			Catalog []struct {
				Type      string
				Endpoints []struct{ Interface, URL string }
			}
		}
	}
	header, err := c.send(ctx, http.MethodPost, c.auth.URL+"/auth/tokens", nil, body, &answer)
	if err != nil {
		return fmt.Errorf("authenticate %s: %w", c.auth.Username, err)
	}
	endpoints := map[string]string{Identity: c.auth.URL}
	for _, service := range answer.Token.Catalog {
		for _, endpoint := range service.Endpoints {
			if endpoint.Interface == "public" && service.Type != Identity {
				endpoints[service.Type] = strings.TrimSuffix(endpoint.URL, "/")
			}
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.token, c.endpoints, c.project = header.Get("X-Subject-Token"), endpoints, answer.Token.Project.ID
	return nil
}

// Endpoint is the address of a service, as the catalog has it.
func (c *Client) Endpoint(service string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.endpoints[service]
}

// ProjectID is the project that the session is scoped to.
func (c *Client) ProjectID() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.project
}

// Do sends in as JSON (nothing when nil; as it is when an io.Reader) and decodes the answer into out (nowhere when nil; as it is when an
// io.Writer). A status of 400 and above is an *Error.
func (c *Client) Do(ctx context.Context, method, service, path string, in, out any) error {
	return c.DoAt(ctx, microversions[service], method, service, path, in, out)
}

// DoAt is Do at a microversion of the service, such as "compute 2.48"; "" is its oldest.
func (c *Client) DoAt(ctx context.Context, version, method, service, path string, in, out any) error {
	c.mu.Lock()
	base, token := c.endpoints[service], c.token
	c.mu.Unlock()
	if base == "" {
		return fmt.Errorf("call %s %s: no %s service in the catalog", method, path, service)
	}
	header := http.Header{"X-Auth-Token": {token}}
	if version != "" {
		header.Set("OpenStack-Api-Version", version)
	}
	_, err := c.send(ctx, method, base+path, header, in, out)
	return err
}

func (c *Client) send(ctx context.Context, method, url string, header http.Header, in, out any) (http.Header, error) {
	contentType := "application/json"
	var raw []byte
	stream, streaming := in.(io.Reader)
	if patch, ok := in.(imagePatch); ok {
		contentType, in = "application/openstack-images-v2.1-json-patch", []map[string]any(patch)
	}
	switch {
	case streaming:
		contentType = "application/octet-stream"
	case in != nil:
		var err error
		if raw, err = json.Marshal(in); err != nil {
			return nil, err
		}
	}
	var response *http.Response
	for try := 1; ; try++ {
		body := stream
		if !streaming && raw != nil {
			body = bytes.NewReader(raw)
		}
		request, err := http.NewRequestWithContext(ctx, method, url, body)
		if err != nil {
			return nil, err
		}
		maps.Copy(request.Header, header)
		request.Header.Set("Content-Type", contentType)
		response, err = c.http.Do(request)
		last := streaming || try == 5
		if err == nil && (last || response.StatusCode != http.StatusServiceUnavailable) {
			break
		}
		if err != nil && (last || !worthRetrying(method, err)) {
			return nil, err
		}
		if err == nil { // the service could not ask Keystone who calls
			_ = response.Body.Close()
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(300 * time.Millisecond):
		}
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, fmt.Errorf("read answer to %s %s: %w", method, url, err)
	}
	if response.StatusCode >= http.StatusBadRequest {
		return nil, &Error{Method: method, URL: url, Status: response.StatusCode, Body: string(answer)}
	}
	if to, ok := out.(io.Writer); ok {
		_, err := to.Write(answer)
		return response.Header, err
	}
	if out != nil && len(answer) > 0 {
		if err := json.Unmarshal(answer, out); err != nil {
			return nil, fmt.Errorf("decode answer to %s %s: %w", method, url, err)
		}
	}
	return response.Header, nil
}

// worthRetrying: a request that never arrived, or one that may arrive twice.
func worthRetrying(method string, err error) bool {
	if errors.Is(err, syscall.ECONNREFUSED) {
		return true
	}
	var op *net.OpError
	return method == http.MethodGet && (errors.As(err, &op) || errors.Is(err, io.EOF))
}

// Poll calls check every interval until it reports true or an error, or ctx ends. what is for the message.
func Poll(ctx context.Context, interval time.Duration, what string, check func() (bool, error)) error {
	for {
		done, err := check()
		if done || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", what, context.Cause(ctx))
		case <-time.After(interval):
		}
	}
}
