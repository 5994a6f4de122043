package openstack

import (
	"encoding/json"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestFindEndpoint uses the catalog of a real token and the one of a request context.
func TestFindEndpoint(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile("testdata/zed/token.json")
	require.NoError(t, err)
	var body struct {
		Token struct{ Catalog json.RawMessage }
	}
	require.NoError(t, json.Unmarshal(raw, &body))
	v3 := parseCatalog(body.Token.Catalog)
	v2 := parseCatalog(json.RawMessage(`[
		{"type":"volumev3","name":"cinderv3","endpoints":[{"region":"One","publicURL":"p1","internalURL":"i1"},{"region":"Two","publicURL":"p2","adminURL":"a2"}]},
		{"type":"volumev3","name":"other","endpoints":[{"region":"One","publicURL":"o1"}]}]`))
	for _, tt := range []struct {
		name    string
		catalog catalog
		options ServiceOptions
		want    string
	}{
		{"v3", v3, ServiceOptions{Types: []string{"network"}, Region: "RegionOne"}, "http://127.0.0.1:9696"},
		{"no such type", v3, ServiceOptions{Types: []string{"dns"}}, ""},
		{"second type", v3, ServiceOptions{Types: []string{"block-storage", "image"}}, "http://127.0.0.1:9292"},
		{"other region", v3, ServiceOptions{Types: []string{"network"}, Region: "RegionTwo"}, ""},
		{"internal first", v2, ServiceOptions{Types: []string{"volumev3"}}, "i1"},
		{"public first", v2, ServiceOptions{Types: []string{"volumev3"}, Interfaces: []string{"public", "internal"}}, "p1"},
		{"old spelling", v2, ServiceOptions{Types: []string{"volumev3"}, Interfaces: []string{"adminURL"}}, "a2"},
		{"region", v2, ServiceOptions{Types: []string{"volumev3"}, Region: "Two"}, "p2"},
		{"name", v2, ServiceOptions{Types: []string{"volumev3"}, Name: "other"}, "o1"},
		{"nothing", parseCatalog(nil), ServiceOptions{Types: []string{"network"}}, ""},
		{"foreign", parseCatalog(json.RawMessage(`{"a":1}`)), ServiceOptions{Types: []string{"network"}}, ""},
	} {
		require.Equal(t, tt.want, tt.catalog.find(&tt.options), tt.name)
	}
}

func TestAddresses(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ endpoint, version, want string }{
		{"http://h:9696", "v2.0", "http://h:9696/v2.0"},
		{"http://h:9696/", "v2.0", "http://h:9696/v2.0"},
		{"http://h:9696/v2.0/", "v2.0", "http://h:9696/v2.0"},
		{"http://h/image/v1", "v2", "http://h/image/v2"},
		{"http://h/placement", "", "http://h/placement"},
		{"http://h/volume/v3/abc", "", "http://h/volume/v3/abc"},
	} {
		require.Equal(t, tt.want, withVersion(tt.endpoint, tt.version))
	}
	for in, want := range map[string]string{
		"http://h:5000": "http://h:5000/v3/", "http://h:5000/": "http://h:5000/v3/", "http://h:5000/v3": "http://h:5000/v3/",
		"https://h/identity/v3/": "https://h/identity/v3/", "http://h/identity": "http://h/identity/v3/", "http://h:5000/v2.0": "http://h:5000/v3/",
	} {
		got, err := identityEndpoint(in)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	require.Equal(t, "http://u:xxxxx@h/", redactURL("http://u:p@h/"))
	require.Equal(t, "(unreadable address)", redactURL("http://u:p@h:port/%"))
}

func FuzzReadBody(f *testing.F) {
	f.Add([]byte(`{"NeutronError": {"type": "PortNotFound", "message": "Port p could not be found."}}`))
	f.Add([]byte(`{"errors": [{"detail": "x", "code": "y"}, null]}`))
	f.Add([]byte("<html><p>x"))
	f.Fuzz(func(t *testing.T, body []byte) {
		_, message := readBody(body)
		require.LessOrEqual(t, len([]rune(message)), maxMessage+1)
	})
}
