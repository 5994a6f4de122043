// Package reqctx carries what belongs to one request: the OpenStack request
// context (who asks, under which request id, with which token) and the log
// fields derived from it. It imports nothing of ours, so every package may use it.
package reqctx

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/sirupsen/logrus"
)

// Secret is a string that never shows itself: every formatting verb and JSON
// encoding prints a mask. Reveal gives the value to the one caller that sends it.
type Secret string

// Format implements fmt.Formatter with a mask: without it a wrong verb would print the value.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, s.String()) }

// String implements fmt.Stringer with a mask.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return "***"
}

// MarshalJSON implements json.Marshaler with a mask.
func (s Secret) MarshalJSON() ([]byte, error) { return json.Marshal(s.String()) }

// Reveal returns the secret itself.
func (s Secret) Reveal() string { return string(s) }

// Request is the RequestContext of a message (nova/context.py:RequestContext).
// The typed fields are those that the agent reads; Raw holds all of them as
// received, so that work on a caller's behalf forwards the context unchanged.
type Request struct {
	RequestID       string
	GlobalRequestID string
	UserID          string
	UserName        string
	ProjectID       string
	ProjectName     string
	UserDomain      string
	ProjectDomain   string
	Roles           []string
	IsAdmin         bool
	ReadDeleted     string // "no", "yes" or "only"
	AuthToken       Secret
	ServiceCatalog  json.RawMessage // keystone v2 style list
	Raw             map[string]json.RawMessage
}

// Format implements fmt.Formatter: a request prints as its id, for Raw holds the token.
func (r *Request) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, r.String()) }

// String implements fmt.Stringer with the request's id.
func (r *Request) String() string { return r.RequestID }

// timestampLayout is the only form that oslo.utils parse_strtime accepts:
// six digits and no zone.
const timestampLayout = "2006-01-02T15:04:05.000000"

// Admin returns a fresh context of the agent itself: no user, no token, is_admin.
func Admin() *Request {
	return &Request{RequestID: "req-" + uuid.NewString(), IsAdmin: true, ReadDeleted: "no", Roles: []string{}}
}

// FromMap reads a context from the keys of a message, without their "_context_" prefix.
// A missing key takes oslo.context's default (is_admin false).
func FromMap(raw map[string]json.RawMessage) *Request {
	r := &Request{ReadDeleted: "no", Raw: raw}
	get := func(key string, into any) {
		if v, ok := raw[key]; ok {
			_ = json.Unmarshal(v, into) // null and foreign types leave the default
		}
	}
	var token string
	get("request_id", &r.RequestID)
	get("global_request_id", &r.GlobalRequestID)
	get("user_id", &r.UserID)
	get("user_name", &r.UserName)
	get("project_id", &r.ProjectID)
	get("project_name", &r.ProjectName)
	get("user_domain", &r.UserDomain)
	get("project_domain", &r.ProjectDomain)
	get("roles", &r.Roles)
	get("is_admin", &r.IsAdmin)
	get("read_deleted", &r.ReadDeleted)
	get("auth_token", &token)
	r.AuthToken = Secret(token)
	r.ServiceCatalog = raw["service_catalog"]
	return r
}

// Map gives the 25 keys of the context for a message, in oslo.context's form.
func (r *Request) Map() map[string]json.RawMessage {
	if r.Raw != nil {
		return maps.Clone(r.Raw)
	}
	null := json.RawMessage("null")
	str := func(s string) json.RawMessage {
		if s == "" {
			return null
		}
		b, _ := json.Marshal(s)
		return b
	}
	boolean := func(b bool) json.RawMessage {
		if b {
			return json.RawMessage("true")
		}
		return json.RawMessage("false")
	}
	dash := func(s string) string {
		if s == "" {
			return "-"
		}
		return s
	}
	roles, _ := json.Marshal(r.Roles)
	if r.Roles == nil {
		roles = []byte("[]")
	}
	catalog := r.ServiceCatalog
	if catalog == nil {
		catalog = json.RawMessage("[]")
	}
	readDeleted := r.ReadDeleted
	if readDeleted == "" {
		readDeleted = "no"
	}
	return map[string]json.RawMessage{
		"user": str(r.UserID), "user_id": str(r.UserID), "project": str(r.ProjectID), "project_id": str(r.ProjectID),
		"system_scope": null, "domain": null, "user_domain": str(r.UserDomain), "project_domain": str(r.ProjectDomain),
		"is_admin": boolean(r.IsAdmin), "read_only": boolean(false), "show_deleted": boolean(false),
		"auth_token": str(r.AuthToken.Reveal()), "request_id": str(r.RequestID), "global_request_id": str(r.GlobalRequestID),
		"resource_uuid": null, "roles": roles,
		"user_identity":    str(dash(r.UserID) + " " + dash(r.ProjectID) + " - " + dash(r.UserDomain) + " " + dash(r.ProjectDomain)),
		"is_admin_project": boolean(true), "read_deleted": str(readDeleted), "remote_address": null,
		"timestamp": str(time.Now().UTC().Format(timestampLayout)), "quota_class": null, "user_name": str(r.UserName),
		"service_catalog": catalog, "project_name": str(r.ProjectName),
	}
}

// Elevated returns the same context with is_admin and the role "admin"
// (nova/context.py:RequestContext.elevated).
func (r *Request) Elevated() *Request {
	e := r.clone()
	e.IsAdmin = true
	e.set("is_admin", true)
	if slices.Contains(e.Roles, "admin") {
		return e
	}
	e.Roles = append(append([]string{}, e.Roles...), "admin")
	e.set("roles", e.Roles)
	return e
}

// WithReadDeleted returns the same context with another read_deleted ("no", "yes", "only").
func (r *Request) WithReadDeleted(v string) *Request {
	e := r.clone()
	e.ReadDeleted = v
	e.set("read_deleted", v)
	return e
}

func (r *Request) clone() *Request {
	e := *r
	if r.Raw != nil {
		e.Raw = maps.Clone(r.Raw)
	}
	return &e
}

func (r *Request) set(key string, v any) {
	if r.Raw != nil {
		r.Raw[key], _ = json.Marshal(v)
	}
}

type requestKey struct{}

type fieldsKey struct{}

// With attaches a request to a context.
func With(ctx context.Context, r *Request) context.Context {
	return context.WithValue(ctx, requestKey{}, r)
}

// From returns the request of a context; a context without one gets the agent's own (see Admin).
func From(ctx context.Context) *Request {
	if r, ok := ctx.Value(requestKey{}).(*Request); ok {
		return r
	}
	return Admin()
}

// WithField adds a log field that every Log(ctx) below will carry, e.g. "instance".
func WithField(ctx context.Context, key string, value any) context.Context {
	old, _ := ctx.Value(fieldsKey{}).(logrus.Fields)
	fields := make(logrus.Fields, len(old)+1)
	maps.Copy(fields, old)
	fields[key] = value
	return context.WithValue(ctx, fieldsKey{}, fields)
}

// Log returns a log entry with the request's ids and the fields added by WithField.
func Log(ctx context.Context) *logrus.Entry {
	entry := logrus.NewEntry(logrus.StandardLogger())
	if r, ok := ctx.Value(requestKey{}).(*Request); ok {
		entry = entry.WithField("request_id", r.RequestID)
		if r.GlobalRequestID != "" {
			entry = entry.WithField("global_request_id", r.GlobalRequestID)
		}
		if r.ProjectID != "" {
			entry = entry.WithField("project_id", r.ProjectID).WithField("user_id", r.UserID)
		}
	}
	if fields, ok := ctx.Value(fieldsKey{}).(logrus.Fields); ok {
		entry = entry.WithFields(fields)
	}
	return entry
}
