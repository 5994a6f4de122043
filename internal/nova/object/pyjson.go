package object

import (
	"bytes"
	"encoding/json"
	"unicode/utf16"
	"unicode/utf8"
)

// pythonJSON encodes a value as Python's json.dumps does by default: a blank after
// each comma and colon, everything outside printable ASCII escaped. Nova compares and
// stores such texts as strings.
func pythonJSON(v any) ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	src := bytes.TrimSuffix(buf.Bytes(), []byte("\n"))
	out := make([]byte, 0, len(src)+len(src)/8)
	inString := false
	for i := 0; i < len(src); {
		c := src[i]
		switch {
		case c == '\\' && inString:
			var n int
			out, n = appendEscape(out, src[i:])
			i += n
			continue
		case c == '"':
			inString = !inString
			out = append(out, c)
		case !inString && (c == ',' || c == ':'):
			out = append(out, c, ' ')
		case c < utf8.RuneSelf && c != 0x7f:
			out = append(out, c)
		default:
			r, size := utf8.DecodeRune(src[i:])
			out = appendEscaped(out, r)
			i += size
			continue
		}
		i++
	}
	return out, nil
}

// appendEscape copies the escape at the start of src, which is never the last byte of valid
// JSON, and returns its length. Go escapes <, > and & for HTML; Python does not.
func appendEscape(out, src []byte) ([]byte, int) {
	if src[1] == 'u' && len(src) >= 6 {
		switch string(src[2:6]) {
		case "003c":
			return append(out, '<'), 6
		case "003e":
			return append(out, '>'), 6
		case "0026":
			return append(out, '&'), 6
		}
	}
	return append(out, src[0], src[1]), 2
}

func appendEscaped(out []byte, r rune) []byte {
	if r > 0xffff {
		hi, lo := utf16.EncodeRune(r)
		return appendEscaped(appendEscaped(out, hi), lo)
	}
	const hex = "0123456789abcdef"
	return append(out, '\\', 'u', hex[r>>12&15], hex[r>>8&15], hex[r>>4&15], hex[r&15])
}
