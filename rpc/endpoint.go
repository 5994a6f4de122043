package rpc

import (
	"context"
	"strconv"
	"strings"
)

// Handler runs one method. ctx carries the caller's reqctx.Request and, for a
// call whose time-out is known, its deadline. The result is anything that
// encoding/json can write, nil for Python's None.
type Handler func(ctx context.Context, args Args) (any, error)

// Endpoint is a set of methods under one namespace and version
// (oslo_messaging.Target of an endpoint object).
type Endpoint struct {
	Namespace string // "" is the null namespace
	Version   string // "6.1"; "" is "1.0"
	Methods   map[string]Handler
}

// lookup walks the endpoints in order (dispatcher.py:RPCDispatcher.dispatch): the
// first one of the namespace with a compatible version that has the method wins.
// Names with a leading underscore are treated as missing (DefaultRPCAccessPolicy).
func lookup(endpoints []Endpoint, namespace, version, method string) (Handler, *Failure) {
	if version == "" {
		version = "1.0"
	}
	compatible := false
	for _, e := range endpoints {
		if e.Namespace != namespace || !versionCompatible(e.Version, version) {
			continue
		}
		compatible = true
		if h, ok := e.Methods[method]; ok && !strings.HasPrefix(method, "_") {
			return h, nil
		}
	}
	if compatible {
		return nil, noSuchMethod(method)
	}
	return nil, unsupportedVersion(version, method)
}

// versionCompatible tells whether what serves version served can take a request
// for version wanted (_utils.py:version_is_compatible): same major, minor not
// above, and a revision not above if the minors are equal.
func versionCompatible(served, wanted string) bool {
	if served == "" {
		served = "1.0"
	}
	s, ok := parseVersion(served)
	if !ok {
		return false
	}
	w, ok := parseVersion(wanted)
	if !ok {
		return false
	}
	return s[0] == w[0] && w[1] <= s[1] && (w[1] < s[1] || w[2] <= s[2])
}

// parseVersion reads "major.minor[.revision]".
func parseVersion(v string) (parts [3]int, ok bool) {
	fields := strings.Split(v, ".")
	if len(fields) < 2 || len(fields) > 3 {
		return parts, false
	}
	for i, f := range fields {
		n, err := strconv.Atoi(f)
		if err != nil || n < 0 {
			return parts, false
		}
		parts[i] = n
	}
	return parts, true
}
