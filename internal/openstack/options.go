package openstack

import (
	"time"

	"github.com/compute-agent/compute-agent/internal/reqctx"
)

// TLSOptions are the keystoneauth session options cafile, certfile, keyfile and insecure.
type TLSOptions struct {
	CAFile   string // PEM bundle that replaces the system's; empty: the system's
	CertFile string // client certificate, may hold the key too
	KeyFile  string
	Insecure bool // do not verify the server's certificate
}

// AuthOptions are the keystoneauth plugin options of one section. Values are
// the operator's; nothing is checked before the first use.
type AuthOptions struct {
	Section string // for messages: "neutron"

	// Type is auth_type: password, v3password, v3applicationcredential, v3token or token.
	Type string
	// URL is auth_url, with or without the trailing /v3.
	URL string

	Username          string
	UserID            string
	Password          reqctx.Secret
	UserDomainName    string
	UserDomainID      string
	DefaultDomainName string // of user and project where those have none
	DefaultDomainID   string

	ProjectName       string
	ProjectID         string
	ProjectDomainName string
	ProjectDomainID   string
	DomainName        string // scope to a domain
	DomainID          string
	SystemScope       string // "all" or empty
	TrustID           string

	ApplicationCredentialID     string
	ApplicationCredentialName   string
	ApplicationCredentialSecret reqctx.Secret
	Token                       reqctx.Secret // of v3token

	TLS     TLSOptions
	Timeout time.Duration // of one authentication; 0: 60 s
	// ConnectRetries bounds new attempts when Keystone cannot be reached.
	ConnectRetries int
}

// ServiceOptions are the keystoneauth adapter options of one section.
type ServiceOptions struct {
	Section string // for messages: "neutron"

	// Session is the section's own identity. Nil (as for [glance]): only
	// requests with the user's token can be made.
	Session *Session
	// ServiceUser adds X-Service-Token to requests made with the user's token
	// ([service_user] send_service_user_token). Nil: none.
	ServiceUser *Session

	// Types are the service types to look for in the catalog, preferred first.
	Types []string
	// Name is service_name; empty: any.
	Name string
	// Version is appended to an endpoint that ends in no version: "v2.0". Empty: none.
	Version string
	// Interfaces is valid_interfaces, preferred first; empty: internal, public.
	Interfaces []string
	Region     string // region_name; empty: any
	// EndpointOverride is used in place of the catalog's endpoint.
	EndpointOverride string

	TLS TLSOptions
	// Timeout bounds one attempt of a request that is not a stream, and the
	// silence within a stream; 0: 1 min for reads, 5 min for others.
	Timeout time.Duration
	// ConnectRetries bounds new attempts after a connection that could not be
	// made and, for reads, after one that broke or stayed silent; the wait before
	// each doubles from ConnectRetryDelay (0: 0.5 s) to one minute.
	ConnectRetries    int
	ConnectRetryDelay time.Duration
	// StatusCodeRetries bounds new attempts after RetriableStatusCodes (empty: 503).
	StatusCodeRetries    int
	RetriableStatusCodes []int
}
