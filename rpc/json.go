package rpc

import (
	"bytes"
	"encoding/json"
	"fmt"
	"unicode/utf8"
)

// marshal writes v as Python's json.dumps does by default: ASCII only, ", " and
// ": " between items, object keys in the order of encoding/json.
func marshal(v any) ([]byte, error) {
	if raw, ok := v.(json.RawMessage); ok {
		return appendPython(make([]byte, 0, len(raw)+len(raw)/8), raw)
	}
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("encode %T: %w", v, err)
	}
	return appendPython(make([]byte, 0, buf.Len()+buf.Len()/8), buf.Bytes())
}

// appendPython appends src, one JSON value, in the form of Python's json.dumps.
func appendPython(dst, src []byte) ([]byte, error) {
	if len(bytes.TrimSpace(src)) == 0 {
		return append(dst, "null"...), nil
	}
	if !json.Valid(src) {
		return nil, fmt.Errorf("encode raw message of %d bytes: not valid json", len(src))
	}
	inString := false
	for i := 0; i < len(src); {
		c := src[i]
		switch {
		case inString && c == '\\': // an escape and the character behind it
			dst = append(dst, c, src[i+1])
			i += 2
			continue
		case c == '"':
			inString = !inString
			dst = append(dst, c)
		case inString && (c >= utf8.RuneSelf || c == 0x7f):
			r, size := utf8.DecodeRune(src[i:])
			dst = appendRune(dst, r)
			i += size
			continue
		case inString:
			dst = append(dst, c)
		case c == ' ' || c == '\t' || c == '\n' || c == '\r':
		case c == ',' || c == ':':
			dst = append(dst, c, ' ')
		default:
			dst = append(dst, c)
		}
		i++
	}
	return dst, nil
}

const hexDigits = "0123456789abcdef"

// appendRune appends \uXXXX, as a surrogate pair above the basic plane.
func appendRune(dst []byte, r rune) []byte {
	if r >= 0x10000 {
		r -= 0x10000
		dst = appendUnit(dst, 0xd800+(r>>10)&0x3ff)
		return appendUnit(dst, 0xdc00+r&0x3ff)
	}
	return appendUnit(dst, r)
}

func appendUnit(dst []byte, u rune) []byte {
	return append(dst, '\\', 'u', hexDigits[u>>12&0xf], hexDigits[u>>8&0xf], hexDigits[u>>4&0xf], hexDigits[u&0xf])
}

// object writes a JSON object key by key, in the order of the calls.
type object struct {
	buf []byte
	err error
}

// raw adds a member whose value is JSON already.
func (o *object) raw(key string, value []byte) {
	if o.err != nil {
		return
	}
	if len(o.buf) == 0 {
		o.buf = append(o.buf, '{')
	} else {
		o.buf = append(o.buf, ", "...)
	}
	name, err := marshal(key)
	if err != nil {
		o.err = err
		return
	}
	o.buf = append(append(o.buf, name...), ": "...)
	if o.buf, err = appendPython(o.buf, value); err != nil {
		o.err = fmt.Errorf("encode %s: %w", key, err)
	}
}

// add adds a member of any type.
func (o *object) add(key string, value any) {
	if o.err != nil {
		return
	}
	raw, err := marshal(value)
	if err != nil {
		o.err = fmt.Errorf("encode %s: %w", key, err)
		return
	}
	o.raw(key, raw)
}

// bytes closes the object.
func (o *object) bytes() ([]byte, error) {
	if o.err != nil {
		return nil, o.err
	}
	if len(o.buf) == 0 {
		return []byte("{}"), nil
	}
	return append(o.buf, '}'), nil
}
