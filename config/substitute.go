package config

import (
	"regexp"
	"strings"
)

// reference matches what Python's string.Template does with oslo.config's
// identifiers (oslo_config/cfg.py:ConfigOpts.Template): $$, $name, ${name}.
var reference = regexp.MustCompile(`\$(?:(\$)|([_a-zA-Z][._a-zA-Z0-9]*)|\{([_a-zA-Z][._a-zA-Z0-9]*)\})`)

// Limits that no honest configuration meets; they keep references to references finite.
const (
	maxReferences = 64      // options on the way from one to another
	maxText       = 1 << 20 // bytes of a value after substitution
)

// referenceError is a reference that cannot be followed.
type referenceError struct {
	text     string // follows the quoted value in a message
	remedy   string
	reported bool // the option referred to is at fault, and has been reported
}

func (e *referenceError) Error() string { return e.text }

func (l *loader) substituteAll(values []string, section string) ([]string, error) {
	out := make([]string, len(values))
	for i, v := range values {
		text, err := l.substitute(v, section)
		if err != nil {
			return nil, err
		}
		out[i] = text
	}
	return out, nil
}

// substitute replaces references by the options' values: $name is looked up in
// the section at hand and then in [DEFAULT], $section.name where it says; $$ and
// \$ are a dollar sign. What looks like no reference stays as it is.
func (l *loader) substitute(text, section string) (string, error) {
	if !strings.Contains(text, "$") {
		return text, nil
	}
	if l.depth++; l.depth > maxReferences {
		return "", &referenceError{text: "refers to another option over too many others", remedy: "write the value itself"}
	}
	defer func() { l.depth-- }()
	text = strings.ReplaceAll(text, `\$`, "$$")
	var failure error
	length := 0
	out := reference.ReplaceAllStringFunc(text, func(m string) string {
		if m == "$$" || failure != nil {
			return "$"
		}
		v, err := l.lookup(strings.Trim(m, "${}"), section)
		if length += len(v); err == nil && length > maxText {
			err = &referenceError{text: "becomes too long by what it refers to", remedy: "write the value itself"}
		}
		failure = err
		return v
	})
	return out, failure
}

// lookup gives the text of a reference (oslo_config/cfg.py:StrSubWrapper).
func (l *loader) lookup(ref, section string) (string, error) {
	names := []name{{section, ref}, {defaultSection, ref}}
	if group, opt, ok := strings.Cut(ref, "."); ok {
		names = []name{{group, opt}}
		if group == defaultSection { // oslo.config knows no group of that name
			names = nil
		}
	}
	for _, n := range names {
		if o := l.registry.byName[n]; o != nil {
			return l.referred(o, ref)
		}
	}
	// nova registers more options than the agent knows: take what a file says.
	for _, n := range names {
		if l.inFiles(n) {
			return l.referred(foreignOption(n), ref)
		}
	}
	remedy := "write $$ for a dollar sign"
	if head, _, ok := strings.Cut(ref, "."); ok && l.registry.byName[name{defaultSection, head}] != nil {
		remedy = "write ${" + head + "} where a dot follows"
	}
	return "", &referenceError{text: "refers to $" + ref + ", which is no option", remedy: remedy}
}

func (l *loader) referred(o *option, ref string) (string, error) {
	v := l.resolve(o)
	switch {
	case v.busy:
		return "", &referenceError{text: "refers to itself through $" + ref, remedy: "break the circle"}
	case v.failed:
		return "", &referenceError{text: "refers to an option with a fault", reported: true}
	case v.unset:
		return "", nil
	case o.multi:
		return strings.Join(v.texts, ","), nil
	}
	return o.format(v.texts[0]), nil
}

func (l *loader) inFiles(n name) bool {
	for _, f := range l.files {
		if len(f.values[n]) > 0 {
			return true
		}
	}
	return false
}

// foreignOption stands for an option of nova that the agent does not know. It
// counts as secret, since nothing is known about it.
func foreignOption(n name) *option {
	return &option{
		name:   n,
		secret: true,
		set:    func([]string) error { return nil },
		format: func(v string) string { return v },
	}
}
