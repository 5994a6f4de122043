package openstack

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/gophercloud/gophercloud/v2"

	"github.com/compute-agent/compute-agent/internal/reqctx"
	"github.com/compute-agent/compute-agent/internal/stopwatch"
)

const (
	requestIDHeader = "X-OpenStack-Request-ID"

	// The timeouts of one attempt when the option timeout is unset. A read is
	// repeated after that (see ServiceOptions.ConnectRetries), a change is not.
	defaultReadTimeout = time.Minute
	defaultTimeout     = 5 * time.Minute
	// maxAnswer bounds an answer that is decoded; the largest real ones are
	// lists of some thousand ports.
	maxAnswer = 64 << 20
)

// Service is an endpoint with its section's identity. Safe for concurrent use.
type Service struct {
	pool    *Pool
	options ServiceOptions
}

// Service returns the service for a section's adapter options. It does not
// touch the network.
func (p *Pool) Service(o ServiceOptions) *Service {
	if len(o.RetriableStatusCodes) == 0 {
		o.RetriableStatusCodes = []int{http.StatusServiceUnavailable}
	}
	return &Service{pool: p, options: o}
}

// Section returns the section that configures the service.
func (s *Service) Section() string { return s.options.Section }

// Request is one request of a service.
type Request struct {
	Method string
	Path   string // below the endpoint (and its version): "/ports"
	Query  url.Values
	Header map[string]string
	Body   any // sent as JSON; nil: no body
	// RawBody is sent as it is, with the Content-Type of Header, and once only.
	RawBody io.Reader
	Into    any // filled from the answer's JSON, when it has a body; nil: the body is dropped
	// User: with the token of the context's request. A context without token
	// uses the service's own identity, as Nova does for periodic tasks.
	User bool
	// Changes tells of a GET that makes something: it has the time of a change,
	// and is not repeated once the service may have seen it.
	Changes bool
	// Endpoint replaces the service's own for this request ([glance] api_servers).
	Endpoint string
}

// Do makes a request. Any status in 2xx is a success; others are an *HTTPError.
// A refused token of the agent's own is renewed and the request repeated once.
func (s *Service) Do(ctx context.Context, r Request) error {
	defer stopwatch.Wait(ctx, s.options.Section)()
	return s.retry(ctx, r, func() error {
		ctx, cancel := context.WithTimeoutCause(ctx, s.timeout(r), errSilent)
		defer cancel()
		resp, err := s.send(ctx, r)
		if err != nil {
			return err
		}
		defer resp.Body.Close() //nolint:errcheck // only read
		body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
		switch {
		case err != nil:
			return s.broken(ctx, r, resp.Request.URL.Scheme+"://"+resp.Request.URL.Host, err)
		case len(body) > maxAnswer:
			return fmt.Errorf("%s: %s %s: answer exceeds %d bytes", s.options.Section, r.Method, r.Path, maxAnswer)
		case r.Into == nil || len(body) == 0:
			return nil
		}
		if err := json.Unmarshal(body, r.Into); err != nil {
			return fmt.Errorf("%s: %s %s: read answer: %w", s.options.Section, r.Method, r.Path, err)
		}
		return nil
	})
}

// Stream makes a request and returns the answer's status, headers and body,
// which the caller closes. It may take any time as long as data flows: a body
// that stands still for the service's timeout, in either direction, ends with
// an error.
func (s *Service) Stream(ctx context.Context, r Request) (*http.Response, error) {
	var resp *http.Response
	err := s.retry(ctx, r, func() error {
		watched := newIdleWatch(ctx, s.timeout(r))
		if r.RawBody != nil {
			r.RawBody = &watchedReader{Reader: r.RawBody, watch: watched}
		}
		answer, err := s.send(watched.ctx, r) //nolint:bodyclose,contextcheck // the caller closes it; the watch is on ctx
		if err != nil {
			watched.stop()
			return err
		}
		watched.timer.Stop()
		watched.body = answer.Body
		answer.Body = watched
		resp = answer
		return nil
	})
	return resp, err
}

// reads reports whether the request may be made twice.
func (r Request) reads() bool { return r.Method == http.MethodGet && !r.Changes }

func (s *Service) timeout(r Request) time.Duration {
	if r.reads() {
		return orDefault(s.options.Timeout, defaultReadTimeout)
	}
	return orDefault(s.options.Timeout, defaultTimeout)
}

// retry repeats a request after failed connections and retriable statuses.
func (s *Service) retry(ctx context.Context, r Request, attempt func() error) error {
	if r.RawBody != nil {
		return attempt() // consumed by the first attempt
	}
	started := time.Now()
	again := s.options.StatusCodeRetries
	for {
		err := retryConnect(ctx, s.options.ConnectRetries, s.options.ConnectRetryDelay, r.reads(), attempt)
		log := reqctx.Log(ctx).WithFields(map[string]any{
			"service": s.options.Section, "http_method": r.Method, "path": r.Path, "elapsed": time.Since(started).Seconds(),
		})
		if err != nil {
			log = log.WithError(err)
		}
		log.Debug("service request")
		if err == nil || again == 0 || !slices.Contains(s.options.RetriableStatusCodes, Status(err)) {
			return err
		}
		again--
		if sleep(ctx, orDefault(s.options.ConnectRetryDelay, firstRetryDelay)) != nil {
			return err
		}
	}
}

// send makes one attempt, and a second one with a new token of the agent's if
// one was among those that the service refused.
func (s *Service) send(ctx context.Context, r Request) (*http.Response, error) {
	caller, err := s.caller(ctx, r.User, "")
	if err != nil {
		return nil, err
	}
	resp, err := s.sendAs(ctx, r, caller)
	if Status(err) != http.StatusUnauthorized || caller.renewable == "" || r.RawBody != nil {
		return resp, err
	}
	if caller, err = s.caller(ctx, r.User, caller.renewable); err != nil {
		return nil, err
	}
	return s.sendAs(ctx, r, caller)
}

// caller is whose token a request carries and where the endpoint is looked up.
type caller struct {
	token        reqctx.Secret
	serviceToken reqctx.Secret
	catalog      catalog
	user         bool          // the token is the user's
	renewable    reqctx.Secret // the agent's own among the two tokens, if any
}

// caller decides who makes the request (nova/network/neutron.py:_get_auth_plugin,
// nova/service_auth.py:get_service_user_token_auth_plugin).
func (s *Service) caller(ctx context.Context, user bool, stale reqctx.Secret) (caller, error) {
	req := reqctx.From(ctx)
	if user && req.AuthToken != "" {
		c := caller{token: req.AuthToken, catalog: parseCatalog(req.ServiceCatalog), user: true}
		if s.options.ServiceUser != nil {
			g, err := s.options.ServiceUser.grant(ctx, stale)
			if err != nil {
				return caller{}, err
			}
			c.serviceToken, c.renewable = g.token, g.token
		}
		return c, nil
	}
	session := cmp.Or(s.options.Session, s.options.ServiceUser)
	if session == nil {
		return caller{}, &optionError{
			section: s.options.Section, option: "auth_type", sentinel: ErrNoIdentity,
			cause: errors.New("is not set and the request carries no token"),
		}
	}
	g, err := session.grant(ctx, stale)
	if err != nil {
		return caller{}, err
	}
	return caller{token: g.token, catalog: g.catalog, renewable: g.token}, nil
}

var okCodes = []int{200, 201, 202, 203, 204, 205, 206}

func (s *Service) sendAs(ctx context.Context, r Request, c caller) (*http.Response, error) {
	endpoint, err := s.endpoint(ctx, r, c)
	if err != nil {
		return nil, err
	}
	engine, err := s.pool.engine(s.options.Section, s.options.TLS)
	if err != nil {
		return nil, err
	}
	headers := map[string]string{"X-Auth-Token": c.token.Reveal(), requestIDHeader: requestID(ctx)}
	if c.serviceToken != "" {
		headers["X-Service-Token"] = c.serviceToken.Reveal()
	}
	maps.Copy(headers, r.Header)
	target := endpoint + r.Path
	if len(r.Query) > 0 {
		target += "?" + r.Query.Encode()
	}
	resp, err := engine.Request(ctx, r.Method, target, &gophercloud.RequestOpts{
		JSONBody: r.Body, RawBody: r.RawBody, MoreHeaders: headers, OkCodes: okCodes, KeepResponseBody: true,
	})
	if err == nil {
		return resp, nil
	}
	if e := httpError(s.options.Section, r.Method, r.Path, err); e != nil {
		return nil, e
	}
	return nil, s.broken(ctx, r, endpoint, err)
}

// endpoint finds the address for a caller: override, the caller's catalog, then
// the catalog of the service's own identity, since Nova's API leaves some
// contexts without a catalog.
func (s *Service) endpoint(ctx context.Context, r Request, c caller) (string, error) {
	if found := cmp.Or(r.Endpoint, s.options.EndpointOverride, c.catalog.find(&s.options)); found != "" {
		return withVersion(found, s.options.Version), nil
	}
	if session := cmp.Or(s.options.Session, s.options.ServiceUser); c.user && session != nil {
		g, err := session.grant(ctx, "")
		if err != nil {
			return "", err
		}
		if found := g.catalog.find(&s.options); found != "" {
			return withVersion(found, s.options.Version), nil
		}
	}
	interfaces := s.options.Interfaces
	if len(interfaces) == 0 {
		interfaces = defaultInterfaces
	}
	return "", &optionError{
		section: s.options.Section, option: "service_type", value: strings.Join(s.options.Types, ","), sentinel: ErrNoEndpoint,
		cause: fmt.Errorf("no endpoint in the catalog (service_name %q, valid_interfaces %s, region_name %q)",
			s.options.Name, strings.Join(interfaces, ","), s.options.Region),
	}
}

// broken describes a connection that could not be made or did not hold: with
// the option that says where it goes, unless the caller itself gave up.
func (s *Service) broken(ctx context.Context, r Request, endpoint string, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		err = cause
		if !errors.Is(cause, errSilent) {
			return fmt.Errorf("%s: %s %s: %w", s.options.Section, r.Method, r.Path, cause)
		}
	}
	option, value := "endpoint_override", redactURL(endpoint)
	switch {
	case r.Endpoint != "":
		option = "api_servers"
	case s.options.EndpointOverride == "":
		option = "endpoint"
		value += " of the catalog (valid_interfaces, region_name, endpoint_override)"
	}
	return &optionError{section: s.options.Section, option: option, value: value, sentinel: ErrUnreachable, cause: unwrapURL(err)}
}

// requestID is what the services log for the request
// (oslo_context.context.RequestContext.global_id).
func requestID(ctx context.Context) string {
	r := reqctx.From(ctx)
	return cmp.Or(r.GlobalRequestID, r.RequestID)
}
