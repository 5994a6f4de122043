//go:build ignore

// Scrub copies captured RabbitMQ traffic for use as test data: it keeps Nova's messages
// and their replies and replaces every secret.
//
//	go run scrub.go SOURCE_DIR DEST_DIR [file...]
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// secretKeys name values that are secret wherever they occur.
var secretKeys = []string{
	"auth_token", "_context_auth_token", "admin_password", "new_pass", "rescue_password", "password",
	"transport_url", "database_connection", "token", "access_url", "connection_info",
}

const redacted = "REDACTED"

// minSecret is the least length of a secret that is also searched for inside other texts.
const minSecret = 12

type scrubber struct {
	secrets map[string]bool // values that were found under a secret key
	kept    map[string]bool // _msg_id of the requests that are kept
}

func main() {
	if len(os.Args) < 3 {
		log.Fatal("usage: scrub SOURCE_DIR DEST_DIR [file...]")
	}
	source, dest := os.Args[1], os.Args[2]
	files := os.Args[3:]
	if len(files) == 0 {
		all, err := filepath.Glob(filepath.Join(source, "*.jsonl"))
		if err != nil {
			log.Fatal(err)
		}
		for _, f := range all {
			files = append(files, filepath.Base(f))
		}
	}
	s := &scrubber{secrets: map[string]bool{}, kept: map[string]bool{}}
	for _, f := range files {
		s.each(filepath.Join(source, f), s.learn)
	}
	if err := os.MkdirAll(dest, 0o755); err != nil {
		log.Fatal(err)
	}
	for _, f := range files {
		var out bytes.Buffer
		s.each(filepath.Join(source, f), func(line []byte) { s.write(&out, line) })
		if out.Len() == 0 {
			continue
		}
		if err := os.WriteFile(filepath.Join(dest, f), out.Bytes(), 0o644); err != nil {
			log.Fatal(err)
		}
	}
}

func (s *scrubber) each(path string, fn func(line []byte)) {
	f, err := os.Open(path)
	if err != nil {
		log.Fatal(err)
	}
	defer f.Close()
	in := bufio.NewScanner(f)
	in.Buffer(nil, 16<<20)
	for in.Scan() {
		fn(in.Bytes())
	}
	if err := in.Err(); err != nil {
		log.Fatal(err)
	}
}

type message struct {
	Exchange string `json:"exchange"`
	Body     struct {
		Message struct {
			MsgID string `json:"_msg_id"`
		} `json:"oslo.message"`
	} `json:"body"`
}

func (s *scrubber) learn(line []byte) {
	var m message
	if err := json.Unmarshal(line, &m); err != nil {
		log.Fatal(err)
	}
	if ours(m.Exchange) && m.Body.Message.MsgID != "" {
		s.kept[m.Body.Message.MsgID] = true
	}
	var any any
	if err := json.Unmarshal(line, &any); err != nil {
		log.Fatal(err)
	}
	s.collect(any, "")
}

func ours(exchange string) bool {
	return exchange == "nova" || exchange == "scheduler_fanout" || strings.HasPrefix(exchange, "compute")
}

func (s *scrubber) collect(v any, key string) {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			s.collect(e, k)
		}
	case []any:
		for _, e := range v {
			s.collect(e, "")
		}
	case string:
		if slices.Contains(secretKeys, key) && len(v) >= minSecret {
			s.secrets[v] = true
		}
	}
}

func (s *scrubber) write(out *bytes.Buffer, line []byte) {
	var m message
	if err := json.Unmarshal(line, &m); err != nil {
		log.Fatal(err)
	}
	if !ours(m.Exchange) && !(m.Exchange == "" && s.kept[m.Body.Message.MsgID]) {
		return
	}
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.UseNumber()
	s.copy(out, dec, "")
	out.WriteByte('\n')
}

// copy rewrites one JSON value; the order of keys and the form of numbers stay.
func (s *scrubber) copy(out *bytes.Buffer, dec *json.Decoder, key string) {
	t, err := dec.Token()
	if err != nil && err != io.EOF {
		log.Fatal(err)
	}
	switch t := t.(type) {
	case json.Delim:
		out.WriteRune(rune(t))
		for n := 0; dec.More(); n++ {
			if n > 0 {
				out.WriteString(", ")
			}
			k := ""
			if t == '{' {
				name, err := dec.Token()
				if err != nil {
					log.Fatal(err)
				}
				k = name.(string)
				s.text(out, k)
				out.WriteString(": ")
			}
			s.copy(out, dec, k)
		}
		end, err := dec.Token()
		if err != nil {
			log.Fatal(err)
		}
		out.WriteRune(rune(end.(json.Delim)))
	case string:
		if slices.Contains(secretKeys, key) && t != "" {
			t = redacted
		}
		for secret := range s.secrets {
			t = strings.ReplaceAll(t, secret, redacted)
		}
		s.text(out, t)
	case nil:
		out.WriteString("null")
	default:
		fmt.Fprint(out, t)
	}
}

func (s *scrubber) text(out *bytes.Buffer, v string) {
	enc := json.NewEncoder(out)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		log.Fatal(err)
	}
	out.Truncate(out.Len() - 1) // the encoder's newline
}
