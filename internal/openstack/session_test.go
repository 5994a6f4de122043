package openstack_test

import (
	"context"
	"net"
	"net/http"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/internal/openstack"
	"github.com/compute-agent/compute-agent/internal/openstack/ostest"
)

func ok(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"answer": 42}`)) }

var get = openstack.Request{Method: http.MethodGet, Path: "/things"}

func TestOneTokenForEqualCredentials(t *testing.T) {
	t.Parallel()
	fake := ostest.NewFake(t, map[string]http.Handler{"network": http.HandlerFunc(ok), "placement": http.HandlerFunc(ok)})
	same := fake.Auth("neutron", "nova")
	network := fake.Pool.Service(openstack.ServiceOptions{Section: "neutron", Session: fake.Pool.Session(same), Types: []string{"network"}})
	same.Section = "placement"
	placement := fake.Pool.Service(openstack.ServiceOptions{Section: "placement", Session: fake.Pool.Session(same), Types: []string{"placement"}})
	other := fake.Pool.Session(fake.Auth("cinder", "cinder"))

	var group errgroup.Group
	for range 20 {
		group.Go(func() error { return network.Do(t.Context(), get) })
		group.Go(func() error { return placement.Do(t.Context(), get) })
	}
	require.NoError(t, group.Wait())
	require.Equal(t, 1, fake.Granted())
	_, err := other.Token(t.Context())
	require.NoError(t, err)
	require.Equal(t, 2, fake.Granted())
	project, err := other.ProjectID(t.Context())
	require.NoError(t, err)
	require.Equal(t, "service-project", project)
}

func TestTokenIsRenewedBeforeItExpires(t *testing.T) {
	t.Parallel()
	fake := ostest.NewFake(t, nil)
	session := fake.Pool.Session(fake.Auth("neutron", "neutron"))
	fake.SetLifetime(time.Minute)
	first, err := session.Token(t.Context())
	require.NoError(t, err)

	fake.SetDown(true)
	kept, err := session.Token(t.Context())
	require.NoError(t, err, "the present token is good for a minute still")
	require.Equal(t, first, kept)

	fake.SetDown(false)
	fake.SetLifetime(time.Hour)
	second, err := session.Token(t.Context())
	require.NoError(t, err)
	require.NotEqual(t, first, second)
	third, err := session.Token(t.Context())
	require.NoError(t, err)
	require.Equal(t, second, third)
}

func TestGivingUpDoesNotEndOthersAuthentication(t *testing.T) {
	t.Parallel()
	fake := ostest.NewFake(t, nil)
	session := fake.Pool.Session(fake.Auth("neutron", "neutron"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := session.Token(ctx)
	if err != nil { // the flight may win the race
		require.ErrorIs(t, err, context.Canceled)
	}
	_, err = session.Token(t.Context())
	require.NoError(t, err)
	require.Equal(t, 1, fake.Granted())
}

func TestAuthenticationFailuresNameTheOption(t *testing.T) {
	t.Parallel()
	fake := ostest.NewFake(t, nil)
	closed := closedAddress(t)
	for _, tt := range []struct {
		name     string
		change   func(*openstack.AuthOptions)
		sentinel error
		want     string
	}{
		{"refused", func(o *openstack.AuthOptions) { o.URL = "http://user:hidden@" + closed }, openstack.ErrUnreachable, "[neutron] auth_url http://user:xxxxx@" + closed},
		{"not an address", func(o *openstack.AuthOptions) { o.URL = "keystone:5000" }, openstack.ErrCredentials, "[neutron] auth_url: is not an http or https address"},
		{"no address", func(o *openstack.AuthOptions) { o.URL = "" }, openstack.ErrCredentials, "[neutron] auth_url: is not set"},
		{"wrong path", func(o *openstack.AuthOptions) { o.URL += "/elsewhere" }, openstack.ErrCredentials, "[neutron] auth_url " + fake.URL + "/elsewhere: neutron: POST /auth/tokens: 404"},
		{"wrong password", func(o *openstack.AuthOptions) { o.Password = "hidden" }, openstack.ErrCredentials, "[neutron] username nova: neutron: POST /auth/tokens: 401 Unauthorized: The request you have made"},
		{"no type", func(o *openstack.AuthOptions) { o.Type = "" }, openstack.ErrCredentials, "[neutron] auth_type: is not set"},
		{"other type", func(o *openstack.AuthOptions) { o.Type = "v3oidc" }, openstack.ErrCredentials, "[neutron] auth_type: v3oidc is not supported"},
		{"no user", func(o *openstack.AuthOptions) { o.Username = "" }, openstack.ErrCredentials, "[neutron] username: is not set"},
		{"no password", func(o *openstack.AuthOptions) { o.Password = "" }, openstack.ErrCredentials, "[neutron] password: is not set"},
		{"no user domain", func(o *openstack.AuthOptions) { o.UserDomainName = "" }, openstack.ErrCredentials, "[neutron] user_domain_name: is not set"},
		{"no project domain", func(o *openstack.AuthOptions) { o.ProjectDomainName = "" }, openstack.ErrCredentials, "[neutron] project_domain_name: is not set"},
		{"no token", func(o *openstack.AuthOptions) { o.Type = "v3token" }, openstack.ErrCredentials, "[neutron] token: is not set"},
		{"no secret", func(o *openstack.AuthOptions) { o.Type = "v3applicationcredential" }, openstack.ErrCredentials, "[neutron] application_credential_secret: is not set"},
		{"no certificate file", func(o *openstack.AuthOptions) { o.TLS.CAFile = "/none" }, openstack.ErrUnreachable, "[neutron] cafile /none: no such file or directory"},
		{"system scope", func(o *openstack.AuthOptions) { o.SystemScope = "some" }, openstack.ErrCredentials, "[neutron] system_scope: some is not supported"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			options := fake.Auth("neutron", "nova")
			tt.change(&options)
			_, err := fake.Pool.Session(options).Token(t.Context())
			require.ErrorIs(t, err, tt.sentinel)
			require.ErrorContains(t, err, tt.want)
			require.NotContains(t, err.Error(), "hidden")
			require.NotContains(t, err.Error(), ostest.FakePassword)
		})
	}
}

// closedAddress returns an address at which nobody listens: a port that is taken, and does not listen.
func closedAddress(tb testing.TB) string {
	tb.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(tb, err)
	tb.Cleanup(func() { _ = unix.Close(fd) })
	require.NoError(tb, unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	name, err := unix.Getsockname(fd)
	require.NoError(tb, err)
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(name.(*unix.SockaddrInet4).Port))
}

func TestWhatIsSentToKeystone(t *testing.T) {
	t.Parallel()
	user := map[string]any{"name": "nova", "domain": map[string]any{"name": "Default"}, "password": ostest.FakePassword}
	password := map[string]any{"methods": []any{"password"}, "password": map[string]any{"user": user}}
	project := map[string]any{"project": map[string]any{"name": "service", "domain": map[string]any{"name": "Default"}}}
	for _, tt := range []struct {
		name   string
		change func(*openstack.AuthOptions)
		want   map[string]any
	}{
		{"password", func(*openstack.AuthOptions) {}, map[string]any{"identity": password, "scope": project}},
		{"v3password and /v3", func(o *openstack.AuthOptions) { o.Type, o.URL = "v3password", o.URL+"/v3/" }, map[string]any{"identity": password, "scope": project}},
		{"default domain", func(o *openstack.AuthOptions) {
			o.UserDomainName, o.ProjectDomainName, o.DefaultDomainName = "", "", "Default"
		}, map[string]any{"identity": password, "scope": project}},
		{"ids", func(o *openstack.AuthOptions) { o.UserID, o.ProjectID = "u", "p" }, map[string]any{
			"identity": map[string]any{"methods": []any{"password"}, "password": map[string]any{"user": map[string]any{"id": "u", "password": ostest.FakePassword}}},
			"scope":    map[string]any{"project": map[string]any{"id": "p"}},
		}},
		{"system", func(o *openstack.AuthOptions) { o.SystemScope = "all" }, map[string]any{"identity": password, "scope": map[string]any{"system": map[string]any{"all": true}}}},
		{"application credential", func(o *openstack.AuthOptions) {
			o.Type, o.ApplicationCredentialID, o.ApplicationCredentialSecret = "v3applicationcredential", "ac", "s"
		}, map[string]any{"identity": map[string]any{
			"methods": []any{"application_credential"}, "application_credential": map[string]any{"id": "ac", "secret": "s"},
		}}},
		{"application credential by name", func(o *openstack.AuthOptions) {
			o.Type, o.ApplicationCredentialName, o.ApplicationCredentialSecret = "v3applicationcredential", "ac", "s"
		}, map[string]any{"identity": map[string]any{
			"methods": []any{"application_credential"}, "application_credential": map[string]any{
				"name": "ac", "secret": "s", "user": map[string]any{"name": "nova", "domain": map[string]any{"name": "Default"}},
			},
		}}},
		{"token", func(o *openstack.AuthOptions) { o.Type, o.Token = "v3token", "given" }, map[string]any{
			"identity": map[string]any{"methods": []any{"token"}, "token": map[string]any{"id": "given"}}, "scope": project,
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			fake := ostest.NewFake(t, nil)
			options := fake.Auth("neutron", "nova")
			tt.change(&options)
			_, err := fake.Pool.Session(options).Token(t.Context())
			require.NoError(t, err)
			require.Equal(t, map[string]any{"auth": tt.want}, fake.LastAuth())
		})
	}
}
