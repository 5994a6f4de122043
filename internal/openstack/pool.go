package openstack

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/gophercloud/gophercloud/v2"
)

const (
	// dialTimeout bounds one TCP or TLS handshake; a control plane on the same
	// site answers in milliseconds, and retries follow.
	dialTimeout = 10 * time.Second
	// idlePerHost is how many connections to one service stay open: about as
	// many as parallel builds use, so that a burst pays no handshakes.
	idlePerHost = 32
	// idleTimeout is below the keep-alive of common front ends (Apache 5 s is
	// the exception; Go repeats a request that met a closed idle connection).
	idleTimeout = 60 * time.Second
	// maxRedirects bounds redirects within one host. Others are not followed,
	// because they would carry the token away.
	maxRedirects = 5
)

// Pool owns what services and sessions share: one HTTP transport with
// keep-alive per set of TLS options, and one token per set of credentials.
// The zero value is ready for use. Safe for concurrent use.
type Pool struct {
	// UserAgent names the program to the services. Set before first use.
	UserAgent string

	mu         sync.Mutex // guards the fields below
	transports map[TLSOptions]*http.Transport
	identities map[AuthOptions]*identity
}

// CloseIdle closes the connections that no request uses.
func (p *Pool) CloseIdle() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, t := range p.transports {
		t.CloseIdleConnections()
	}
}

// engine returns the request engine for a set of TLS options. Files that
// cannot be read are an error now and are tried again at the next request.
func (p *Pool) engine(section string, o TLSOptions) (*gophercloud.ProviderClient, error) {
	t, err := p.transport(section, o)
	if err != nil {
		return nil, err
	}
	client := &gophercloud.ProviderClient{HTTPClient: http.Client{Transport: t, CheckRedirect: checkRedirect}}
	if p.UserAgent != "" {
		client.UserAgent.Prepend(p.UserAgent)
	}
	return client, nil
}

func (p *Pool) transport(section string, o TLSOptions) (*http.Transport, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if t, ok := p.transports[o]; ok {
		return t, nil
	}
	config, err := o.config(section)
	if err != nil {
		return nil, err
	}
	t := &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         (&net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}).DialContext,
		TLSClientConfig:     config,
		TLSHandshakeTimeout: dialTimeout,
		MaxIdleConnsPerHost: idlePerHost,
		IdleConnTimeout:     idleTimeout,
		// Images travel as they are; Go would otherwise ask for gzip and hide the length.
		DisableCompression: true,
		ForceAttemptHTTP2:  true,
	}
	if p.transports == nil {
		p.transports = make(map[TLSOptions]*http.Transport)
	}
	p.transports[o] = t
	return t, nil
}

func (o TLSOptions) config(section string) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: o.Insecure} //nolint:gosec // the operator's option "insecure"
	fail := func(option, value string, err error) error {
		return &optionError{section: section, option: option, value: value, sentinel: ErrUnreachable, cause: err}
	}
	if o.CAFile != "" {
		pem, err := os.ReadFile(o.CAFile)
		if err != nil {
			return nil, fail("cafile", o.CAFile, unwrapPath(err))
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fail("cafile", o.CAFile, errors.New("no certificate in the file"))
		}
	}
	if o.CertFile != "" {
		key := o.KeyFile
		if key == "" {
			key = o.CertFile
		}
		cert, err := tls.LoadX509KeyPair(o.CertFile, key)
		if err != nil {
			return nil, fail("certfile", o.CertFile, fmt.Errorf("load with key %s: %w", key, err))
		}
		config.Certificates = []tls.Certificate{cert}
	}
	return config, nil
}

func unwrapPath(err error) error {
	if e, ok := errors.AsType[*os.PathError](err); ok {
		return e.Err
	}
	return err
}

func checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects {
		return fmt.Errorf("more than %d redirects", maxRedirects)
	}
	if req.URL.Host != via[0].URL.Host || req.URL.Scheme != via[0].URL.Scheme {
		return http.ErrUseLastResponse
	}
	return nil
}
