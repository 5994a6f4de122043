package reqctx

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestSecretNeverShowsItself(t *testing.T) {
	t.Parallel()
	secret := Secret("hunter2")
	nested := struct{ Token Secret }{secret}
	request := &Request{RequestID: "req-1", AuthToken: secret, Raw: map[string]json.RawMessage{"auth_token": json.RawMessage(`"hunter2"`)}}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%t", "%10s"} {
		for _, value := range []any{secret, nested, &nested, []Secret{secret}, map[string]Secret{"k": secret}, request, []*Request{request}} {
			require.NotContains(t, fmt.Sprintf(verb, value), "hunter2", "%s of %T", verb, value)
		}
	}
	encoded, err := json.Marshal(nested)
	require.NoError(t, err)
	require.JSONEq(t, `{"Token": "***"}`, string(encoded))
	require.Empty(t, Secret("").String(), "that there is none is no secret")
	require.Equal(t, "hunter2", secret.Reveal())
}

func raw(t testing.TB, text string) map[string]json.RawMessage {
	t.Helper()
	var m map[string]json.RawMessage
	require.NoError(t, json.Unmarshal([]byte(text), &m))
	return m
}

func TestFromMap(t *testing.T) {
	t.Parallel()
	received := raw(t, `{"request_id": "req-1", "global_request_id": null, "user_id": "u", "project_id": "p", "roles": ["member"], "is_admin": false,
		"read_deleted": null, "auth_token": "tok", "service_catalog": [{"type": "image"}], "user_name": 7, "unknown": {"a": 1}}`)
	r := FromMap(received)
	require.Equal(t, "req-1", r.RequestID)
	require.Empty(t, r.GlobalRequestID)
	require.Equal(t, []string{"member"}, r.Roles)
	require.Equal(t, "no", r.ReadDeleted)
	require.Equal(t, "tok", r.AuthToken.Reveal())
	require.Empty(t, r.UserName, "a foreign type leaves the default")
	require.JSONEq(t, `[{"type": "image"}]`, string(r.ServiceCatalog))

	sent := r.Map()
	require.Equal(t, received, sent, "a context is forwarded as it came")
	sent["request_id"] = json.RawMessage(`"other"`)
	require.JSONEq(t, `"req-1"`, string(received["request_id"]), "and is not the caller's to change")
}

func TestElevated(t *testing.T) {
	t.Parallel()
	r := FromMap(raw(t, `{"is_admin": false, "roles": ["member"], "read_deleted": "no"}`))
	e := r.Elevated().WithReadDeleted("yes")
	require.True(t, e.IsAdmin)
	require.Equal(t, []string{"member", "admin"}, e.Roles)
	m := e.Map()
	require.Equal(t, `true ["member","admin"] "yes"`, fmt.Sprintf("%s %s %s", m["is_admin"], m["roles"], m["read_deleted"]))
	require.False(t, r.IsAdmin, "the request itself stays")
	require.JSONEq(t, `["member"]`, string(r.Map()["roles"]))
	require.Equal(t, []string{"admin"}, FromMap(raw(t, `{"roles": ["admin"]}`)).Elevated().Roles)
}

func TestAdmin(t *testing.T) {
	t.Parallel()
	r := Admin()
	require.True(t, strings.HasPrefix(r.RequestID, "req-"))
	require.NotEqual(t, r.RequestID, Admin().RequestID)
	m := r.Map()
	require.Len(t, m, 25, "oslo.context's keys")
	for key, want := range map[string]string{
		"is_admin": "true", "auth_token": "null", "project_id": "null", "roles": "[]", "read_deleted": `"no"`, "user_identity": `"- - - - -"`,
		"service_catalog": "[]", "global_request_id": "null",
	} {
		require.Equal(t, want, string(m[key]), key)
	}
	var stamp string
	require.NoError(t, json.Unmarshal(m["timestamp"], &stamp))
	require.Regexp(t, `^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}$`, stamp)
	m = (&Request{UserID: "u", ProjectID: "p", AuthToken: "tok"}).Map()
	require.Equal(t, `"u p - - -" false [] "no" "tok"`, fmt.Sprintf("%s %s %s %s %s", m["user_identity"], m["is_admin"], m["roles"], m["read_deleted"], m["auth_token"]))
}

func TestContext(t *testing.T) {
	t.Parallel()
	require.True(t, From(t.Context()).IsAdmin, "work that nobody asked for is the agent's own")
	r := &Request{RequestID: "req-1", GlobalRequestID: "req-0", ProjectID: "p", UserID: "u"}
	ctx := With(t.Context(), r)
	require.Same(t, r, From(ctx))
	outer := WithField(ctx, "instance", "i")
	inner := WithField(outer, "port_id", "port")
	require.Equal(t, "i", Log(inner).Data["instance"])
	require.Equal(t, "port", Log(inner).Data["port_id"])
	require.NotContains(t, Log(outer).Data, "port_id", "a field is seen below it only")
	for key, want := range map[string]any{"request_id": "req-1", "global_request_id": "req-0", "project_id": "p", "user_id": "u"} {
		require.Equal(t, want, Log(inner).Data[key])
	}
	require.Empty(t, Log(t.Context()).Data)
}
