package config

import (
	"fmt"
	"strings"
)

// Finding is one fault or warning about the configuration. It never holds a
// secret: Value is masked for secret options, and Message leaves it out.
type Finding struct {
	Fault   bool   `json:"fault"`             // false: a warning
	File    string `json:"file,omitempty"`    // "environment" or "command line" for values from there
	Line    int    `json:"line,omitempty"`    // counted from 1; 0 when there is none
	Section string `json:"section,omitempty"` // as registered: DEFAULT or lower case
	Option  string `json:"option,omitempty"`
	Value   string `json:"value,omitempty"`
	Message string `json:"message"`
	Remedy  string `json:"remedy,omitempty"` // what is allowed, or what to do
}

// String gives the finding on one line: file:line: [section] option: message (remedy);
// the message of a warning says so.
func (f Finding) String() string {
	var b strings.Builder
	if f.File != "" {
		b.WriteString(f.File)
		if f.Line > 0 {
			fmt.Fprintf(&b, ":%d", f.Line)
		}
		b.WriteString(": ")
	}
	if f.Section != "" {
		fmt.Fprintf(&b, "[%s] ", f.Section)
	}
	if f.Option != "" {
		fmt.Fprintf(&b, "%s: ", f.Option)
	}
	if !f.Fault {
		b.WriteString("warning: ")
	}
	b.WriteString(f.Message)
	if f.Remedy != "" {
		fmt.Fprintf(&b, " (%s)", f.Remedy)
	}
	return b.String()
}

// Report is what Load found.
type Report struct {
	Files    []string  // files that were read, in order of reading
	Findings []Finding // faults first, then warnings
}

// Faults returns the findings that forbid a start.
func (r *Report) Faults() []Finding { return r.filter(true) }

// Warnings returns the findings that an operator should look at.
func (r *Report) Warnings() []Finding { return r.filter(false) }

func (r *Report) filter(fault bool) []Finding {
	var out []Finding
	for _, f := range r.Findings {
		if f.Fault == fault {
			out = append(out, f)
		}
	}
	return out
}

// Error is what Load returns when there are faults; its text has one line for each.
type Error struct {
	Faults []Finding
}

// Error implements error.
func (e *Error) Error() string {
	lines := make([]string, len(e.Faults))
	for i, f := range e.Faults {
		lines[i] = f.String()
	}
	return fmt.Sprintf("read configuration: %d fault(s)\n%s", len(lines), strings.Join(lines, "\n"))
}
