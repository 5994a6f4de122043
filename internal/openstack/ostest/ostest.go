// Package ostest gives functional tests the services of a real control plane,
// which the usual OS_… variables of the openstack client describe.
package ostest

import (
	"cmp"
	"context"
	"os"
	"strings"
	"testing"

	"github.com/compute-agent/compute-agent/internal/openstack"
	"github.com/compute-agent/compute-agent/internal/reqctx"
)

// Cloud is a control plane under test.
type Cloud struct {
	Pool     *openstack.Pool
	authURL  string
	password string
}

// Need returns the control plane of OS_AUTH_URL and OS_PASSWORD. Without them it
// skips the test, or fails it if COMPUTE_AGENT_FUNCTIONAL=1 promises one. The
// users of the services and the tenant "demo" are expected to have the same
// password, unless OS_PASSWORD_<USER> says otherwise.
func Need(tb testing.TB) *Cloud {
	tb.Helper()
	c := &Cloud{authURL: os.Getenv("OS_AUTH_URL"), password: os.Getenv("OS_PASSWORD"), Pool: &openstack.Pool{UserAgent: "compute-agent-test"}}
	if c.authURL == "" || c.password == "" {
		const need = "needs a control plane: OS_AUTH_URL and OS_PASSWORD"
		if os.Getenv("COMPUTE_AGENT_FUNCTIONAL") == "1" {
			tb.Fatal(need)
		}
		tb.Skip(need)
	}
	tb.Cleanup(c.Pool.CloseIdle)
	return c
}

// Session returns the session of a user in a project of the default domain.
func (c *Cloud) Session(section, user, project string) *openstack.Session {
	return c.Pool.Session(openstack.AuthOptions{
		Section: section, Type: "password", URL: c.authURL, Username: user,
		Password:       reqctx.Secret(cmp.Or(os.Getenv("OS_PASSWORD_"+strings.ToUpper(user)), c.password)),
		UserDomainName: "Default", ProjectName: project, ProjectDomainName: "Default",
	})
}

// Service returns a service of the catalog with the credentials of its user in
// the project "service".
func (c *Cloud) Service(section, serviceType, version string) *openstack.Service {
	user := map[string]string{"network": "neutron", "image": "glance", "placement": "placement"}[serviceType]
	return c.Pool.Service(openstack.ServiceOptions{
		Section: section, Session: c.Session(section, user, "service"), Types: []string{serviceType}, Version: version,
		Region: os.Getenv("OS_REGION_NAME"), ConnectRetries: 3,
	})
}

// Context returns the context of a user's request, and his project's id.
func (c *Cloud) Context(tb testing.TB, user, project string, roles ...string) (ctx context.Context, projectID string) {
	tb.Helper()
	session := c.Session("test", user, project)
	token, err := session.Token(tb.Context())
	if err != nil {
		tb.Fatalf("authenticate as %s: %v", user, err)
	}
	if projectID, err = session.ProjectID(tb.Context()); err != nil {
		tb.Fatalf("authenticate as %s: %v", user, err)
	}
	request := reqctx.Admin()
	request.IsAdmin = false
	request.AuthToken, request.ProjectID, request.Roles = token, projectID, roles
	return reqctx.With(tb.Context(), request), projectID
}
