package rpc

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestMarshalIsPythonsForm(t *testing.T) {
	t.Parallel()
	// Expected texts are what Python's json.dumps prints.
	tests := map[string]struct {
		in   any
		want string
	}{
		"nil":           {nil, `null`},
		"empty raw":     {json.RawMessage(nil), `null`},
		"blank raw":     {json.RawMessage("  "), `null`},
		"separators":    {map[string]any{"a": []int{1, 2}, "b": map[string]any{}}, `{"a": [1, 2], "b": {}}`},
		"raw":           {json.RawMessage("{ \"b\" :1,\n\t\"a\":[true,null] }"), `{"b": 1, "a": [true, null]}`},
		"in strings":    {"a, b: c", `"a, b: c"`},
		"html":          {"<a href=\"x\">&</a>", `"<a href=\"x\">&</a>"`},
		"latin":         {"grüße", `"gr\u00fc\u00dfe"`},
		"above basic":   {"😀", `"\ud83d\ude00"`},
		"last plane":    {"\U0010ffff", `"\udbff\udfff"`},
		"control":       {"\x00\x1f\b\f\n\r\t\x7f", `"\u0000\u001f\b\f\n\r\t\u007f"`},
		"line sep":      {"\u2028", `"\u2028"`},
		"backslash":     {`a\`, `"a\\"`},
		"raw backslash": {json.RawMessage(`"\\\"é\\"`), `"\\\"\u00e9\\"`},
		"keys too":      {map[string]int{"é": 1}, `{"\u00e9": 1}`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := marshal(tt.in)
			require.NoError(t, err)
			require.Equal(t, tt.want, string(got))
		})
	}
}

func TestMarshalRefuses(t *testing.T) {
	t.Parallel()
	for name, in := range map[string]any{
		"function": func() {}, "broken raw": json.RawMessage(`{"a":`), "open escape": json.RawMessage(`"\`), "two values": json.RawMessage(`1 2`),
	} {
		_, err := marshal(in)
		require.Error(t, err, name)
	}
}

func TestObject(t *testing.T) {
	t.Parallel()
	var o object
	got, err := o.bytes()
	require.NoError(t, err)
	require.Equal(t, `{}`, string(got))
	o.add("z", 1)
	o.raw("a", json.RawMessage(`[1,2]`))
	got, err = o.bytes()
	require.NoError(t, err)
	require.Equal(t, `{"z": 1, "a": [1, 2]}`, string(got)) //nolint:testifylint // every byte counts, as Python writes it
	o.raw("bad", []byte(`{`))
	o.add("after", 1)
	_, err = o.bytes()
	require.ErrorContains(t, err, "encode bad")
}
