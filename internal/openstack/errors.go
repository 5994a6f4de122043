package openstack

import (
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"net/http"
	"regexp"
	"strings"

	"github.com/gophercloud/gophercloud/v2"
)

// Errors that callers may test.
var (
	// ErrUnreachable: no connection to Keystone or to the service could be made
	// (or it broke); the text names the option that holds the address.
	ErrUnreachable = errors.New("service unreachable")
	// ErrCredentials: Keystone refused the agent's own credentials, or they are incomplete.
	ErrCredentials = errors.New("credentials not accepted")
	// ErrNoEndpoint: the catalog has no matching endpoint.
	ErrNoEndpoint = errors.New("no endpoint in the catalog")
	// ErrNoIdentity: the request has no token and the section has no credentials.
	ErrNoIdentity = errors.New("no token and no credentials")
)

// HTTPError is an answer of a service with a status outside 2xx. It never
// holds a header or a body that was sent.
type HTTPError struct {
	Status    int
	Service   string // section of the configuration
	Method    string
	Path      string // without the query
	Kind      string // the service's own class: "IpAddressInUse", "placement.concurrent_update"; may be empty
	Message   string // the service's own words; may be empty
	RequestID string // X-OpenStack-Request-ID of the answer, to look up in the service's log
}

// Error implements error.
func (e *HTTPError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s %s: %d %s", e.Service, e.Method, e.Path, e.Status, http.StatusText(e.Status))
	if e.Kind != "" {
		b.WriteString(": " + e.Kind)
	}
	if e.Message != "" {
		b.WriteString(": " + e.Message)
	}
	if e.RequestID != "" {
		b.WriteString(" (" + e.RequestID + ")")
	}
	return b.String()
}

// Status returns the HTTP status of the service's answer within err, or 0.
func Status(err error) int {
	if e, ok := errors.AsType[*HTTPError](err); ok {
		return e.Status
	}
	return 0
}

// Kind returns the service's own class of the error within err, or "".
func Kind(err error) string {
	if e, ok := errors.AsType[*HTTPError](err); ok {
		return e.Kind
	}
	return ""
}

// optionError says which option of which section to look at. It matches its
// sentinel and its cause.
type optionError struct {
	section, option, value string // value may be empty, and is never a secret
	sentinel, cause        error
}

func (e *optionError) Error() string {
	text := "[" + e.section + "] " + e.option
	if e.value != "" {
		text += " " + e.value
	}
	return text + ": " + e.cause.Error()
}

func (e *optionError) Unwrap() []error { return []error{e.sentinel, e.cause} }

// maxMessage bounds what is kept of an answer's words: a proxy's HTML page is
// of no use in an instance fault.
const maxMessage = 500

// httpError converts gophercloud's error for an unexpected status; nil for any other error.
func httpError(section, method, path string, err error) *HTTPError {
	e, ok := errors.AsType[gophercloud.ErrUnexpectedResponseCode](err)
	if !ok {
		return nil
	}
	kind, message := readBody(e.Body)
	return &HTTPError{
		Status: e.Actual, Service: section, Method: method, Path: path, Kind: kind, Message: message,
		RequestID: e.ResponseHeader.Get("X-Openstack-Request-Id"),
	}
}

var (
	htmlHead = regexp.MustCompile(`(?is)<(head|style|script)\b.*?</(head|style|script)>`)
	htmlTag  = regexp.MustCompile(`<[^>]*>`)
)

// readBody finds the class and the words of an error in the forms that the
// services use: {"NeutronError": {type, message}}, {"errors": [{code, detail}]}
// (Placement), {"error": {message}} (Keystone), {"<fault>": {code, message}}
// (Nova, Cinder), and HTML or text (Glance, proxies).
func readBody(body []byte) (kind, message string) {
	var doc map[string]json.RawMessage
	if json.Unmarshal(body, &doc) != nil {
		text := htmlTag.ReplaceAllString(htmlHead.ReplaceAllString(string(body), " "), " ")
		return "", shorten(html.UnescapeString(text))
	}
	for name, raw := range doc {
		var one struct{ Type, Code, Message, Detail string }
		var many []json.RawMessage
		var text string
		switch {
		case json.Unmarshal(raw, &text) == nil:
			message = text
		case json.Unmarshal(raw, &many) == nil && len(many) > 0:
			_ = json.Unmarshal(many[0], &one) // foreign types of one field leave the others
		default:
			_ = json.Unmarshal(raw, &one) // a numeric code does not hinder the message
		}
		if one.Message == "" {
			one.Message = one.Detail
		}
		if one.Message == "" {
			continue
		}
		kind, message = one.Type, one.Message
		if kind == "" {
			kind = one.Code
		}
		if kind == "" && name != "error" && name != "errors" {
			kind = name
		}
		break
	}
	return kind, shorten(message)
}

func shorten(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	if r := []rune(s); len(r) > maxMessage {
		return string(r[:maxMessage]) + "…"
	}
	return s
}
