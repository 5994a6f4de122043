package rpc

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// envelopeVersion is what oslo.messaging sends and the newest it accepts
// (_drivers/common.py:_RPC_ENVELOPE_VERSION).
const envelopeVersion = "2.0"

// MalformedError is a message that is no oslo.messaging message.
type MalformedError struct {
	Kind  string // "json", "version", "envelope", "message", "method", "args", "context", "reply"; bounded, a metrics label
	Cause error
}

// Error names the kind and the cause, never the content.
func (e *MalformedError) Error() string {
	return fmt.Sprintf("malformed message (%s): %v", e.Kind, e.Cause)
}

// Unwrap gives the cause.
func (e *MalformedError) Unwrap() error { return e.Cause }

func malformed(kind string, cause error) error { return &MalformedError{Kind: kind, Cause: cause} }

// EncodeEnvelope wraps inner, a JSON object, as the string oslo.message of an
// envelope 2.0 (_drivers/common.py:serialize_msg). The result is ASCII.
func EncodeEnvelope(inner []byte) ([]byte, error) {
	text, err := appendPython(nil, inner)
	if err != nil {
		return nil, err
	}
	return wrap(text), nil
}

// wrap encodes text, which is ASCII JSON without control characters, as a string.
func wrap(text []byte) []byte {
	const head, tail = `{"oslo.version": "` + envelopeVersion + `", "oslo.message": "`, `"}`
	escapes := bytes.Count(text, []byte{'"'}) + bytes.Count(text, []byte{'\\'})
	body := make([]byte, 0, len(head)+len(text)+escapes+len(tail))
	body = append(body, head...)
	for _, c := range text {
		if c == '"' || c == '\\' {
			body = append(body, '\\')
		}
		body = append(body, c)
	}
	return append(body, tail...)
}

// DecodeEnvelope returns the inner message of a body: the content of oslo.message
// (a JSON string; a bare object is taken too), or the body itself if it has no
// envelope (version 1.0, _drivers/common.py:deserialize_msg). The error is a *MalformedError.
func DecodeEnvelope(body []byte) (json.RawMessage, error) {
	inner, err := unwrap(body)
	if err == nil && !json.Valid(inner) {
		err = malformed("message", errors.New("oslo.message is not valid json"))
	}
	if err != nil {
		return nil, err
	}
	return inner, nil
}

// unwrap is DecodeEnvelope without a look into the inner message.
func unwrap(body []byte) (json.RawMessage, error) {
	var outer map[string]json.RawMessage
	if err := json.Unmarshal(body, &outer); err != nil {
		return nil, malformed("json", err)
	}
	version, hasVersion := outer["oslo.version"]
	message, hasMessage := outer["oslo.message"]
	if !hasVersion || !hasMessage {
		if outer == nil {
			return nil, malformed("envelope", errors.New("null body"))
		}
		return body, nil
	}
	if err := checkEnvelopeVersion(version); err != nil {
		return nil, malformed("version", err)
	}
	if bytes.HasPrefix(message, []byte{'"'}) {
		var text string
		if err := json.Unmarshal(message, &text); err != nil {
			return nil, malformed("envelope", err)
		}
		message = json.RawMessage(text)
	}
	return message, nil
}

// checkEnvelopeVersion accepts 2.x with x not above our own, as a string or a number.
func checkEnvelopeVersion(raw json.RawMessage) error {
	version := strings.Trim(string(raw), `"`)
	if !versionCompatible(envelopeVersion, version) {
		return fmt.Errorf("envelope version %.20q is not supported", version)
	}
	return nil
}

// decodeInner reads an inner message into its members.
func decodeInner(body []byte) (map[string]json.RawMessage, error) {
	inner, err := unwrap(body)
	if err != nil {
		return nil, err
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(inner, &fields); err != nil {
		return nil, malformed("message", err)
	}
	if fields == nil {
		return nil, malformed("message", errors.New("null message"))
	}
	return fields, nil
}

// contextPrefix marks the members of a message that belong to the request context.
const contextPrefix = "_context_"

// contextOrder is the order in which Nova writes the context; it has no meaning,
// but equal messages are easier to compare.
var contextOrder = strings.Fields(`user project_id system_scope project domain user_domain project_domain is_admin
	read_only show_deleted auth_token request_id global_request_id resource_uuid roles user_identity is_admin_project
	user_id read_deleted remote_address timestamp quota_class user_name service_catalog project_name`)
