package novatest

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"

	"github.com/compute-agent/compute-agent/internal/reqctx"
)

// request is a call as it comes.
type request struct {
	Class  string `json:"objname"`
	Method string `json:"objmethod"`
	Args   []json.RawMessage
	Kwargs map[string]json.RawMessage
	Object struct {
		Name    string   `json:"nova_object.name"`
		Data    Fields   `json:"nova_object.data"`
		Changes []string `json:"nova_object.changes"`
	} `json:"objinst"`

	call string // "Class.method"
	from *reqctx.Request
}

// arg is a positional or keyword argument as a string.
func (r *request) arg(i int, name string) string {
	if i < len(r.Args) {
		return text(r.Args[i])
	}
	return text(r.Kwargs[name])
}

// changed returns the fields that a save changes.
func (r *request) changed() Fields {
	out := make(Fields, len(r.Object.Changes))
	for _, name := range r.Object.Changes {
		out[name] = r.Object.Data[name]
	}
	return out
}

// moments are fields whose value is the time of the test.
var moments = []string{"launched_at", "terminated_at"}

// line is the request for the log.
func (r *request) line() string {
	var b strings.Builder
	b.WriteString(r.call)
	switch r.Method {
	case "save":
		for _, name := range slices.Sorted(slices.Values(r.Object.Changes)) {
			b.WriteString(" " + name)
			raw := r.Object.Data[name]
			switch {
			case slices.Contains(moments, name) && string(raw) != "null":
				b.WriteString("=now")
			case len(raw) <= maxValue:
				b.WriteString("=" + string(raw))
			}
		}
		for _, name := range slices.Sorted(maps.Keys(r.Kwargs)) {
			if short, ok := strings.CutPrefix(name, "expected_"); ok {
				b.WriteString(" if " + short + "=" + string(r.Kwargs[name]))
			}
		}
	case "event_start", "event_finish_with_failure", "action_start":
		b.WriteString(" " + r.arg(1, ""))
		if failure := text(r.Kwargs["exc_val"]); failure != "" {
			b.WriteString(" failed: " + failure)
		}
	case "create":
		if r.Object.Name == "InstanceFault" {
			b.WriteString(" code=" + string(r.Object.Data["code"]) + " " + text(r.Object.Data["message"]))
		}
	}
	return b.String()
}

// maxValue is how long a value may be to be shown in the log.
const maxValue = 40
