package openstack

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack/identity/v3/tokens"
	"golang.org/x/sync/singleflight"

	"github.com/compute-agent/compute-agent/internal/reqctx"
)

const (
	// defaultAuthTimeout bounds one authentication when the option timeout is unset.
	defaultAuthTimeout = 60 * time.Second
	// renewBefore is how long before its expiry a token is replaced, so that it
	// outlives the request that carries it.
	renewBefore = 2 * time.Minute
)

// Session is an identity of the agent: the credentials of one section. Sessions
// of one pool with equal credentials share one token. Safe for concurrent use.
type Session struct {
	section string
	shared  *identity
}

// Session returns the session for a section's credentials. It does not authenticate.
func (p *Pool) Session(o AuthOptions) *Session {
	section := o.Section
	o.Section = "" // not part of the credentials
	p.mu.Lock()
	defer p.mu.Unlock()
	shared, ok := p.identities[o]
	if !ok {
		shared = &identity{pool: p, options: o}
		if p.identities == nil {
			p.identities = make(map[AuthOptions]*identity)
		}
		p.identities[o] = shared
	}
	return &Session{section: section, shared: shared}
}

// grant is a token with what came along. It is never modified.
type grant struct {
	token     reqctx.Secret
	expires   time.Time
	catalog   catalog
	projectID string
	userID    string
}

func (g *grant) validFor(d time.Duration) bool { return time.Until(g.expires) > d }

// ProjectID returns the project that the session's token is for ("" when the
// scope is not a project). It authenticates if needed.
func (s *Session) ProjectID(ctx context.Context) (string, error) {
	g, err := s.grant(ctx, "")
	if err != nil {
		return "", err
	}
	return g.projectID, nil
}

// Token returns a valid token of the session. It authenticates if needed.
func (s *Session) Token(ctx context.Context) (reqctx.Secret, error) {
	g, err := s.grant(ctx, "")
	if err != nil {
		return "", err
	}
	return g.token, nil
}

// grant returns a valid token; one that is equal to stale, which a service has
// refused, is replaced. Parallel callers share one authentication, and a caller
// that gives up does not end it for the others.
func (s *Session) grant(ctx context.Context, stale reqctx.Secret) (*grant, error) {
	g, err := s.shared.get(ctx, s.section, stale)
	if err != nil {
		return nil, fmt.Errorf("authenticate: %w", err)
	}
	return g, nil
}

// identity is one set of credentials and its current token.
type identity struct {
	pool    *Pool
	options AuthOptions // Section is empty
	flight  singleflight.Group

	mu      sync.Mutex // guards current
	current *grant
}

func (i *identity) cached(stale reqctx.Secret) *grant {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.current == nil || i.current.token == stale {
		return nil
	}
	return i.current
}

func (i *identity) get(ctx context.Context, section string, stale reqctx.Secret) (*grant, error) {
	if g := i.cached(stale); g != nil && g.validFor(renewBefore) {
		return g, nil
	}
	results := i.flight.DoChan("", func() (any, error) {
		// Whoever held the flight before may have renewed it just now.
		if g := i.cached(stale); g != nil && g.validFor(renewBefore) {
			return g, nil
		}
		g, err := i.authenticate(context.WithoutCancel(ctx), section)
		if err != nil {
			if old := i.cached(stale); old != nil && old.validFor(0) {
				reqctx.Log(ctx).WithError(err).Warning("token renewal failed, the present one is still valid")
				return old, nil
			}
			return nil, err
		}
		i.mu.Lock()
		i.current = g
		i.mu.Unlock()
		return g, nil
	})
	select {
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case r := <-results:
		if r.Err != nil {
			return nil, r.Err
		}
		g, _ := r.Val.(*grant)
		return g, nil
	}
}

func (i *identity) authenticate(ctx context.Context, section string) (*grant, error) {
	options, err := i.options.resolve(section)
	if err != nil {
		return nil, err
	}
	engine, err := i.pool.engine(section, i.options.TLS)
	if err != nil {
		return nil, err
	}
	client := &gophercloud.ServiceClient{
		ProviderClient: engine,
		Endpoint:       options.IdentityEndpoint,
		MoreHeaders:    map[string]string{requestIDHeader: requestID(ctx)},
	}
	started := time.Now()
	var result tokens.CreateResult
	err = retryConnect(ctx, i.options.ConnectRetries, 0, true, func() error {
		ctx, cancel := context.WithTimeout(ctx, orDefault(i.options.Timeout, defaultAuthTimeout))
		defer cancel()
		result = tokens.Create(ctx, client, options)
		return result.Err
	})
	if err != nil {
		return nil, i.explain(section, err)
	}
	g, err := readGrant(result)
	if err != nil {
		return nil, &optionError{section: section, option: "auth_url", value: i.options.safeURL(), sentinel: ErrUnreachable, cause: err}
	}
	reqctx.Log(ctx).WithField("section", section).WithField("elapsed", time.Since(started).Seconds()).
		WithField("expires", g.expires.UTC().Format(time.RFC3339)).Debug("authenticated")
	return g, nil
}

func readGrant(result tokens.CreateResult) (*grant, error) {
	token, err := result.Extract()
	if err != nil {
		return nil, fmt.Errorf("read token: %w", err)
	}
	if token.ID == "" {
		return nil, errors.New("read token: the answer has no X-Subject-Token header")
	}
	var body struct {
		Catalog catalog `json:"catalog"`
		Project struct {
			ID string `json:"id"`
		} `json:"project"`
		User struct {
			ID string `json:"id"`
		} `json:"user"`
	}
	if err := result.ExtractInto(&body); err != nil {
		return nil, fmt.Errorf("read catalog: %w", err)
	}
	return &grant{
		token: reqctx.Secret(token.ID), expires: token.ExpiresAt, catalog: body.Catalog,
		projectID: body.Project.ID, userID: body.User.ID,
	}, nil
}

// explain turns a failed authentication into the option to look at: the
// address when Keystone was not reached, the credentials when it said no.
func (i *identity) explain(section string, err error) error {
	e := httpError(section, "POST", "/auth/tokens", err)
	switch {
	case e == nil:
		return &optionError{section: section, option: "auth_url", value: i.options.safeURL(), sentinel: ErrUnreachable, cause: unwrapURL(err)}
	case e.Status == 404:
		return &optionError{section: section, option: "auth_url", value: i.options.safeURL(), sentinel: ErrCredentials, cause: e}
	default:
		return &optionError{section: section, option: i.options.who(), sentinel: ErrCredentials, cause: e}
	}
}

// who names the option that identifies the user, with its value.
func (o *AuthOptions) who() string {
	for _, c := range []struct{ option, value string }{
		{"application_credential_id", o.ApplicationCredentialID},
		{"application_credential_name", o.ApplicationCredentialName},
		{"user_id", o.UserID},
		{"username", o.Username},
	} {
		if c.value != "" {
			return c.option + " " + c.value
		}
	}
	return "auth_type " + o.Type
}

// safeURL is auth_url without a password in it.
func (o *AuthOptions) safeURL() string { return redactURL(o.URL) }

// resolve checks the options and puts them into gophercloud's form. What is
// missing is named as the operator would write it.
func (o *AuthOptions) resolve(section string) (*tokens.AuthOptions, error) {
	fail := func(option, reason string) error {
		return &optionError{section: section, option: option, sentinel: ErrCredentials, cause: errors.New(reason)}
	}
	if o.URL == "" {
		return nil, fail("auth_url", "is not set")
	}
	endpoint, err := identityEndpoint(o.URL)
	if err != nil {
		return nil, fail("auth_url", err.Error())
	}
	opts := &tokens.AuthOptions{IdentityEndpoint: endpoint}
	switch o.Type {
	case "password", "v3password":
		if o.Username == "" && o.UserID == "" {
			return nil, fail("username", "is not set")
		}
		if o.Password == "" {
			return nil, fail("password", "is not set")
		}
		opts.Password = o.Password.Reveal()
		if err := o.user(opts, fail); err != nil {
			return nil, err
		}
	case "v3applicationcredential":
		if o.ApplicationCredentialSecret == "" {
			return nil, fail("application_credential_secret", "is not set")
		}
		opts.ApplicationCredentialSecret = o.ApplicationCredentialSecret.Reveal()
		if o.ApplicationCredentialID != "" {
			opts.ApplicationCredentialID = o.ApplicationCredentialID
			return opts, nil
		}
		if o.ApplicationCredentialName == "" {
			return nil, fail("application_credential_id", "is not set")
		}
		opts.ApplicationCredentialName = o.ApplicationCredentialName
		return opts, o.user(opts, fail) // the scope is the credential's own
	case "token", "v3token":
		if o.Token == "" {
			return nil, fail("token", "is not set")
		}
		opts.TokenID = o.Token.Reveal()
	case "":
		return nil, fail("auth_type", "is not set")
	default:
		return nil, fail("auth_type", o.Type+" is not supported, use password, v3password, v3applicationcredential or v3token")
	}
	return opts, o.scope(opts, fail)
}

func (o *AuthOptions) user(opts *tokens.AuthOptions, fail func(option, reason string) error) error {
	if o.UserID != "" {
		opts.UserID = o.UserID
		return nil
	}
	opts.Username = o.Username
	opts.DomainID, opts.DomainName = o.domain(o.UserDomainID, o.UserDomainName)
	if opts.DomainID == "" && opts.DomainName == "" {
		return fail("user_domain_name", "is not set")
	}
	return nil
}

func (o *AuthOptions) scope(opts *tokens.AuthOptions, fail func(option, reason string) error) error {
	switch {
	case o.TrustID != "":
		opts.Scope.TrustID = o.TrustID
	case o.SystemScope == "all":
		opts.Scope.System = true
	case o.SystemScope != "":
		return fail("system_scope", o.SystemScope+" is not supported, use all")
	case o.ProjectID != "":
		opts.Scope.ProjectID = o.ProjectID
	case o.ProjectName != "":
		opts.Scope.ProjectName = o.ProjectName
		opts.Scope.DomainID, opts.Scope.DomainName = o.domain(o.ProjectDomainID, o.ProjectDomainName)
		if opts.Scope.DomainID == "" && opts.Scope.DomainName == "" {
			return fail("project_domain_name", "is not set")
		}
	case o.DomainID != "":
		opts.Scope.DomainID = o.DomainID
	default:
		opts.Scope.DomainName = o.DomainName
	}
	return nil
}

// domain prefers an id to a name and falls back to the default domain options.
func (o *AuthOptions) domain(id, name string) (string, string) {
	switch {
	case id != "":
		return id, ""
	case name != "":
		return "", name
	case o.DefaultDomainID != "":
		return o.DefaultDomainID, ""
	default:
		return "", o.DefaultDomainName
	}
}

// identityEndpoint gives the v3 endpoint of an auth_url, which operators write
// with and without the version (keystoneauth1/identity/v3/base.py:Auth.get_auth_ref).
func identityEndpoint(authURL string) (string, error) {
	u, err := url.Parse(authURL)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return "", errors.New("is not an http or https address")
	}
	u.RawQuery, u.Fragment = "", ""
	path := strings.TrimRight(u.Path, "/")
	path = strings.TrimSuffix(path, "/v2.0")
	if !strings.HasSuffix(path, "/v3") {
		path += "/v3"
	}
	u.Path = path + "/"
	return u.String(), nil
}
