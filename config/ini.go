package config

import (
	"bytes"
	"strings"
	"unicode"
	"unicode/utf8"
)

// entry is one assignment of a file.
type entry struct {
	section string // as written, without brackets
	key     string
	value   string // continuation lines joined with "\n"
	line    int    // of the key
}

// syntaxError is a line that breaks the grammar.
type syntaxError struct {
	line    int
	message string
	remedy  string
}

// parseINI reads oslo.config's INI dialect (oslo_config/iniparser.py:BaseParser):
//
//   - "key = value" or "key: value", split at the first of the two signs; both
//     sides are stripped, and one pair of equal quotes around the value is removed;
//   - a line that starts with a blank or tab continues the value before it; an
//     empty line, a comment, a section or the next key ends the value;
//   - "#" and ";" start a comment in the first column only;
//   - sections are flat, and nothing may stand before the first one;
//   - a key may be repeated, every value is kept.
//
// Where oslo.config stops at the first error, this parser goes on, so that all
// are reported together; what it returns besides errors is then incomplete.
func parseINI(data []byte) ([]entry, []syntaxError) {
	p := iniParser{}
	for _, line := range splitLines(data) {
		p.line++
		p.feed(line)
	}
	p.flush()
	return p.entries, p.errors
}

type iniParser struct {
	line      int
	section   string
	started   bool // a section header was seen
	open      bool // the last entry of pending may be continued
	pending   entry
	orphans   bool // the missing section was reported
	recovered bool // continuation lines belong to a line that was refused
	entries   []entry
	errors    []syntaxError
}

func (p *iniParser) feed(raw []byte) {
	if !utf8.Valid(raw) {
		p.flush()
		p.fail("line is not valid UTF-8 text", "save the file as UTF-8")
		return
	}
	line := strings.TrimRightFunc(string(raw), isSpace)
	switch {
	case line == "":
		p.flush()
	case line[0] == ' ' || line[0] == '\t':
		p.continueValue(strings.TrimLeftFunc(line, isSpace))
	case line[0] == '[':
		p.flush()
		p.startSection(line)
	case line[0] == '#' || line[0] == ';':
		p.flush()
	default:
		p.flush()
		p.assign(line)
	}
}

func (p *iniParser) continueValue(text string) {
	if p.open {
		p.pending.value += "\n" + text
		return
	}
	if !p.recovered {
		p.fail("continuation line without a value before it", "an indented line continues a value; remove the indentation")
	}
}

func (p *iniParser) startSection(line string) {
	if !strings.HasSuffix(line, "]") {
		p.fail("section header does not end with ]", "write [name] alone on the line")
		return
	}
	if line == "[]" {
		p.fail("section name is empty", "write [name]")
		return
	}
	p.section, p.started = line[1:len(line)-1], true
}

func (p *iniParser) assign(line string) {
	i := strings.IndexAny(line, "=:")
	if i < 0 {
		// The line is not quoted: it may be half of a secret.
		p.fail("neither a section, a comment nor an assignment", "write option = value")
		return
	}
	key := strings.TrimFunc(line[:i], isSpace)
	if key == "" {
		p.fail("option name is empty", "write option = value")
		return
	}
	p.pending = entry{section: p.section, key: key, value: unquote(strings.TrimFunc(line[i+1:], isSpace)), line: p.line}
	p.open = true
}

// flush ends the value being read.
func (p *iniParser) flush() {
	p.recovered = false
	if !p.open {
		return
	}
	p.open = false
	if p.started {
		p.entries = append(p.entries, p.pending)
		return
	}
	if !p.orphans {
		p.orphans = true
		p.errors = append(p.errors, syntaxError{p.pending.line, "option before any section", "put [DEFAULT] or another section above it"})
	}
}

func (p *iniParser) fail(message, remedy string) {
	p.recovered = true
	p.errors = append(p.errors, syntaxError{p.line, message, remedy})
}

// splitLines splits as Python's universal newlines do: at \n, \r\n and \r.
func splitLines(data []byte) [][]byte {
	data = bytes.ReplaceAll(data, []byte("\r\n"), []byte("\n"))
	data = bytes.ReplaceAll(data, []byte("\r"), []byte("\n"))
	return bytes.Split(data, []byte("\n"))
}

// isSpace is Python's str.isspace: Unicode white space and the four information separators.
func isSpace(r rune) bool {
	return unicode.IsSpace(r) || r >= 0x1c && r <= 0x1f
}

// unquote removes one pair of equal quotes; as in oslo.config a lone quote is a pair with itself.
func unquote(s string) string {
	if s == "" || s[0] != '"' && s[0] != '\'' || s[0] != s[len(s)-1] {
		return s
	}
	if len(s) == 1 {
		return ""
	}
	return s[1 : len(s)-1]
}

// normalizeSection gives the name under which a section is looked up:
// lower case, except DEFAULT (oslo_config/cfg.py:_normalize_group_name).
func normalizeSection(name string) string {
	if name == defaultSection {
		return name
	}
	return strings.ToLower(name)
}
