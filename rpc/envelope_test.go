package rpc

import (
	"bufio"
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestDecodeEnvelope(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		body, want, kind string
	}{
		"version 2.0":       {body: `{"oslo.version": "2.0", "oslo.message": "{\"a\": 1}"}`, want: `{"a": 1}`},
		"any layout":        {body: "{\"oslo.message\":\"{}\",\n\"oslo.version\":\"2.0\",\"x\":1}", want: `{}`},
		"number":            {body: `{"oslo.version": 2.0, "oslo.message": "{}"}`, want: `{}`},
		"bare object":       {body: `{"oslo.version": "2.0", "oslo.message": {"a": 1}}`, want: `{"a": 1}`},
		"version 1.0":       {body: `{"method": "m"}`, want: `{"method": "m"}`},
		"only one key":      {body: `{"oslo.version": "9"}`, want: `{"oslo.version": "9"}`},
		"newer minor":       {body: `{"oslo.version": "2.1", "oslo.message": "{}"}`, kind: "version"},
		"other major":       {body: `{"oslo.version": "3.0", "oslo.message": "{}"}`, kind: "version"},
		"no version at all": {body: `{"oslo.version": null, "oslo.message": "{}"}`, kind: "version"},
		"empty":             {body: ``, kind: "json"},
		"text":              {body: `hello`, kind: "json"},
		"list":              {body: `[1]`, kind: "json"},
		"null":              {body: `null`, kind: "envelope"},
		"broken message":    {body: `{"oslo.version": "2.0", "oslo.message": "{"}`, kind: "message"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := DecodeEnvelope([]byte(tt.body))
			if tt.kind != "" {
				var m *MalformedError
				require.ErrorAs(t, err, &m)
				require.Equal(t, tt.kind, m.Kind)
				return
			}
			require.NoError(t, err)
			require.Equal(t, tt.want, string(got))
		})
	}
}

func TestEncodeEnvelope(t *testing.T) {
	t.Parallel()
	got, err := EncodeEnvelope([]byte(`{"a":"é\n"}`))
	require.NoError(t, err)
	require.Equal(t, `{"oslo.version": "2.0", "oslo.message": "{\"a\": \"\\u00e9\\n\"}"}`, string(got)) //nolint:testifylint // every byte counts, as Python writes it
	_, err = EncodeEnvelope([]byte(`{`))
	require.Error(t, err)
}

func TestDecodeRequestMalformed(t *testing.T) {
	t.Parallel()
	for inner, kind := range map[string]string{
		`[]`: "message", `null`: "message", `"x"`: "message", `{}`: "method", `{"method": 1}`: "method", `{"method": ""}`: "method",
		`{"method": "m", "version": 6}`: "method", `{"method": "m", "_msg_id": 1}`: "message", `{"method": "m", "namespace": []}`: "method",
	} {
		_, err := decodeRequest(mustEnvelope(t, inner))
		var m *MalformedError
		require.ErrorAs(t, err, &m, inner)
		require.Equal(t, kind, m.Kind, inner)
	}
}

func TestDecodeRequestLenient(t *testing.T) {
	t.Parallel()
	r, err := decodeRequest([]byte(`{"method": "m", "namespace": null, "_timeout": null, "args": null, "_context_x": 1}`))
	require.NoError(t, err)
	require.Equal(t, "1.0", r.version)
	require.Empty(t, r.namespace)
	require.Zero(t, r.monitor)
	require.Contains(t, r.context, "x")
	args, err := r.arguments()
	require.NoError(t, err)
	require.Empty(t, args)
	for raw, want := range map[string]int{`60`: 60, `2.9`: 2, `"60"`: 60, `-1`: 0, `"x"`: 0, `1e300`: 0, `[]`: 0} {
		require.Equal(t, want, monitorSeconds(json.RawMessage(raw)), raw)
	}
}

// TestGoldenEnvelopes decodes byte-exact examples and writes them again.
func TestGoldenEnvelopes(t *testing.T) {
	t.Parallel()
	for _, line := range lines(t, "testdata/envelopes.jsonl") {
		inner, err := DecodeEnvelope(line)
		require.NoError(t, err)
		again, err := EncodeEnvelope(inner)
		require.NoError(t, err)
		require.Equal(t, string(line), string(again))
		reencode(t, inner, true)
	}
}

// TestCaptures does the same with everything that a Zed control plane published.
func TestCaptures(t *testing.T) {
	if testing.Short() {
		t.Skip("decodes some megabytes")
	}
	t.Parallel()
	dir := os.Getenv("COMPUTE_AGENT_CAPTURES")
	if dir == "" {
		dir = "../internal/nova/testdata/zed"
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.jsonl"))
	require.NoError(t, err)
	if len(files) == 0 {
		t.Skipf("need captures in %s", dir)
	}
	count := 0
	for _, file := range files {
		for _, line := range lines(t, file) {
			var captured struct {
				Exchange string
				Body     json.RawMessage
			}
			require.NoError(t, json.Unmarshal(line, &captured), file)
			inner, err := DecodeEnvelope(captured.Body)
			require.NoError(t, err, file)
			inner, err = marshal(inner) // the captures are written without blanks
			require.NoError(t, err, file)
			reencode(t, inner, captured.Exchange == "nova" || captured.Exchange == "")
			count++
		}
	}
	t.Logf("%d messages of %d files", count, len(files))
}

// reencode reads an inner message as what it is and compares what is written.
// Byte for byte if strict; replies with kwargs and other services' contexts have
// members in an order that has no meaning and is not kept.
func reencode(t *testing.T, inner json.RawMessage, strict bool) {
	t.Helper()
	var members map[string]json.RawMessage
	require.NoError(t, json.Unmarshal(inner, &members))
	var body []byte
	switch {
	case members["method"] != nil:
		r, err := decodeRequest(inner)
		require.NoError(t, err)
		args, err := r.arguments()
		require.NoError(t, err)
		require.NotNil(t, args)
		body, err = r.encode()
		require.NoError(t, err)
	case members["ending"] != nil:
		r, err := decodeReply(inner)
		require.NoError(t, err)
		if r.failure != nil {
			strict = false
		}
		body, err = r.encode()
		require.NoError(t, err)
	default:
		return // a notification is never read
	}
	got, err := DecodeEnvelope(body)
	require.NoError(t, err)
	if strict {
		if !bytes.Equal(inner, got) { // a full diff of such messages is unreadable
			t.Fatalf("%.300s\n%.300s", inner, got)
		}
		return
	}
	if unfold(t, inner) != unfold(t, got) {
		t.Fatalf("%.300s\n%.300s", inner, got)
	}
}

// unfold replaces the failure string of a reply by what it holds.
func unfold(t *testing.T, inner []byte) string {
	t.Helper()
	var members map[string]any
	require.NoError(t, json.Unmarshal(inner, &members))
	if text, ok := members["failure"].(string); ok {
		var f any
		require.NoError(t, json.Unmarshal([]byte(text), &f))
		members["failure"] = f
	}
	out, err := json.Marshal(members)
	require.NoError(t, err)
	return string(out)
}

func lines(t testing.TB, file string) [][]byte {
	t.Helper()
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	var out [][]byte
	scanner := bufio.NewScanner(bytes.NewReader(data))
	scanner.Buffer(nil, 16<<20)
	for scanner.Scan() {
		out = append(out, bytes.Clone(scanner.Bytes()))
	}
	require.NoError(t, scanner.Err())
	return out
}

func mustEnvelope(t testing.TB, inner string) []byte {
	t.Helper()
	body, err := EncodeEnvelope([]byte(inner))
	require.NoError(t, err)
	return body
}

func FuzzDecodeRequest(f *testing.F) {
	for _, line := range lines(f, "testdata/envelopes.jsonl") {
		if len(line) < 1000 { // mutations of long ones find little
			f.Add(line)
		}
	}
	f.Add([]byte(`{"oslo.version": "2.0", "oslo.message": "{\"method\": \"m\", \"_msg_id\": \"1\", \"_reply_q\": \"q\", \"_context_a\": {}}"}`))
	f.Add([]byte(`{"method": "m", "_timeout": 60, "args": {"a": [1.5e3, "\ud800"]}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		if r, err := decodeReply(body); err == nil {
			again, err := r.encode()
			require.NoError(t, err)
			_, err = decodeReply(again)
			require.NoError(t, err)
		}
		r, err := decodeRequest(body)
		if err != nil {
			return
		}
		again, err := r.encode()
		require.NoError(t, err)
		require.True(t, json.Valid(again))
		require.Equal(t, -1, strings.IndexFunc(string(again), func(c rune) bool { return c > 0x7e }))
		second, err := decodeRequest(again)
		require.NoError(t, err)
		twice, err := second.encode()
		require.NoError(t, err)
		require.Equal(t, string(again), string(twice))
	})
}

func BenchmarkDecodeRequest(b *testing.B) {
	body := lines(b, "testdata/envelopes.jsonl")[0]
	b.SetBytes(int64(len(body)))
	for b.Loop() {
		r, err := decodeRequest(body)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := r.arguments(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkEncodeRequest(b *testing.B) {
	body := lines(b, "testdata/envelopes.jsonl")[0]
	r, err := decodeRequest(body)
	require.NoError(b, err)
	b.SetBytes(int64(len(body)))
	for b.Loop() {
		if _, err := r.encode(); err != nil {
			b.Fatal(err)
		}
	}
}
