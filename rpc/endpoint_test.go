package rpc

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestVersionCompatible(t *testing.T) {
	t.Parallel()
	tests := []struct {
		served, wanted string
		want           bool
	}{
		{"6.1", "6.0", true},
		{"6.1", "6.1", true},
		{"6.1", "6.2", false},
		{"6.1", "5.13", false},
		{"6.1", "7.0", false},
		{"", "1.0", true},
		{"", "1.1", false},
		{"1.10", "1.9", true},
		{"1.2.3", "1.2.3", true},
		{"1.2.3", "1.2.4", false},
		{"1.2.3", "1.1.9", true},
		{"1.2", "1.2.1", false},
		{"6.1", "x", false},
		{"6.1", "6", false},
		{"6.1", "6.-1", false},
		{"6.1", "6.0.0.0", false},
	}
	for _, tt := range tests {
		require.Equal(t, tt.want, versionCompatible(tt.served, tt.wanted), "%s takes %s", tt.served, tt.wanted)
	}
}

func TestLookup(t *testing.T) {
	t.Parallel()
	named := func(name string) Handler {
		return func(context.Context, Args) (any, error) { return name, nil }
	}
	endpoints := []Endpoint{
		{Version: "6.1", Methods: map[string]Handler{"stop": named("6"), "_private": named("private")}},
		{Namespace: "baseapi", Version: "1.1", Methods: map[string]Handler{"ping": named("base")}},
		{Version: "5.13", Methods: map[string]Handler{"stop": named("5"), "old": named("old")}},
	}
	tests := map[string]struct {
		namespace, version, method string
		want, class                string
	}{
		"newest":           {"", "6.0", "stop", "6", ""},
		"second endpoint":  {"", "5.0", "stop", "5", ""},
		"namespace":        {"baseapi", "1.0", "ping", "base", ""},
		"default version":  {"baseapi", "", "ping", "base", ""},
		"wrong namespace":  {"", "1.0", "ping", "", "UnsupportedVersion"},
		"too new":          {"", "7.0", "stop", "", "UnsupportedVersion"},
		"method of other":  {"", "6.0", "old", "", "NoSuchMethod"},
		"private":          {"", "6.0", "_private", "", "NoSuchMethod"},
		"not even version": {"", "six", "stop", "", "UnsupportedVersion"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h, refusal := lookup(endpoints, tt.namespace, tt.version, tt.method)
			if tt.class != "" {
				require.Nil(t, h)
				require.Equal(t, tt.class, refusal.Class)
				require.Equal(t, "oslo_messaging.rpc.dispatcher", refusal.Module)
				return
			}
			require.Nil(t, refusal)
			got, err := h(t.Context(), nil)
			require.NoError(t, err)
			require.Equal(t, tt.want, got)
		})
	}
	_, refusal := lookup(endpoints, "", "7.0", "stop_instance")
	require.Equal(t, "Endpoint does not support RPC version 7.0. Attempted method: stop_instance", refusal.Message)
	_, refusal = lookup(endpoints, "", "6.0", "x")
	require.Equal(t, "Endpoint does not support RPC method x", refusal.Message)
}

type domainError struct{}

func (domainError) Error() string { return "domain" }
func (domainError) RPCFailure() *Failure {
	return &Failure{Class: "InstanceNotFound", Module: "nova.exception", Message: "m", Kwargs: map[string]any{"code": 404}}
}

func TestFailureOf(t *testing.T) {
	t.Parallel()
	require.Equal(t, "InstanceNotFound", failureOf(fmt.Errorf("wrapped: %w", domainError{})).Class)
	remote := &Failure{Class: "X", Module: "nova.exception"}
	require.Same(t, remote, failureOf(fmt.Errorf("wrapped: %w", remote)))
	plain := failureOf(errors.New("boom"))
	require.Equal(t, &Failure{Class: "Exception", Module: "builtins", Message: "boom", Args: []any{"boom"}}, plain)
	require.Equal(t, "TypeError", failureOf(&ArgumentError{Name: "x"}).Class)
}

func TestFailureEncoding(t *testing.T) {
	t.Parallel()
	text, err := domainError{}.RPCFailure().encode()
	require.NoError(t, err)
	require.Equal(t, `{"class": "InstanceNotFound", "module": "nova.exception", "message": "m", `+ //nolint:testifylint // every byte counts, as Python writes it
		`"tb": ["Traceback (most recent call last):\n", "nova.exception.InstanceNotFound: m\n"], "args": [], "kwargs": {"code": 404}}`, string(text))
	text, err = (&Failure{Class: "NotImplementedError", Module: "builtins"}).encode()
	require.NoError(t, err)
	require.Contains(t, string(text), `"NotImplementedError\n"]`)

	got := decodeFailure(`{"class": "X_Remote", "module": "nova.exception_Remote", "message": "m", "tb": "one line", "args": ["m"], "kwargs": {"a": 1}}`)
	require.Equal(t, &Failure{
		Class: "X", Module: "nova.exception", Message: "m", Args: []any{"m"}, Kwargs: map[string]any{"a": 1.0}, Traceback: []string{"one line"},
	}, got)
	require.Equal(t, "X: m", got.Error())
	require.Equal(t, "RemoteError", decodeFailure("not json").Class)
}

func TestArgs(t *testing.T) {
	t.Parallel()
	a := Args{"n": []byte(`5`), "null": []byte(`null`), "s": []byte(`"x"`)}
	var n int
	require.NoError(t, a.Decode("n", &n))
	require.Equal(t, 5, n)
	err := a.Decode("gone", &n)
	require.EqualError(t, err, "missing required argument: 'gone'")
	err = a.Decode("s", &n)
	require.ErrorContains(t, err, "argument 's' has a wrong type")
	require.Equal(t, "TypeError", failureOf(err).Class)
	require.NoError(t, a.DecodeOptional("gone", &n))
	require.NoError(t, a.DecodeOptional("null", &n))
	require.Equal(t, 5, n)
	require.Error(t, a.DecodeOptional("s", &n))
}

func TestRecent(t *testing.T) {
	t.Parallel()
	var r recent
	require.False(t, r.seen(""))
	require.False(t, r.seen(""))
	for i := range recentSize {
		require.False(t, r.seen(strconv.Itoa(i)))
	}
	require.True(t, r.seen("0"))
	require.False(t, r.seen("new"))
	require.False(t, r.seen("0")) // pushed out by "new"
}

func TestDeadQueues(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var d deadQueues
		require.False(t, d.contains("q"))
		d.add("q")
		require.True(t, d.contains("q"))
		time.Sleep(deadFor + time.Second)
		require.False(t, d.contains("q"))
		for i := range 3 * deadSize {
			d.add(strconv.Itoa(i))
		}
		require.LessOrEqual(t, len(d.until), deadSize)
	})
}

func TestQuiet(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var q quiet
		_, ok := q.allow("a")
		require.True(t, ok)
		_, ok = q.allow("a")
		require.False(t, ok)
		_, ok = q.allow("b")
		require.True(t, ok)
		time.Sleep(logInterval)
		n, ok := q.allow("a")
		require.True(t, ok)
		require.Equal(t, 1, n)
	})
}
