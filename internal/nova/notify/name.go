package notify

import (
	"fmt"
	"regexp"
	"strconv"

	"github.com/compute-agent/compute-agent/internal/nova/object"
)

// defaultNameTemplate is [DEFAULT] instance_name_template.
const defaultNameTemplate = "instance-%08x"

// conversion is one Python conversion of a name template: %08x of the id, or %(key)s of
// a column.
var conversion = regexp.MustCompile(`%(?:\((\w+)\))?(0?)(\d*)([dxXs%])`)

// InstanceName computes instance.name, which never travels
// (nova/objects/instance.py:Instance.name): the template filled with the id or, in the
// %(…)s form, with the columns id and uuid. A template that names anything else gives the UUID,
// as a template does that Python cannot fill.
func InstanceName(template string, i *object.Instance) string {
	if template == "" {
		template = defaultNameTemplate
	}
	known := true
	name := conversion.ReplaceAllStringFunc(template, func(m string) string {
		part := conversion.FindStringSubmatch(m)
		key, zero, width, verb := part[1], part[2], part[3], part[4]
		if verb == "%" {
			return "%"
		}
		var value any = i.ID
		switch key {
		case "", "id":
		case "uuid":
			value = i.UUID
		default:
			known = false
		}
		if verb == "s" {
			value = fmt.Sprint(value)
		} else if _, ok := value.(string); ok {
			known = false
			return ""
		}
		n, err := strconv.Atoi("0" + width)
		if err != nil || n > 255 {
			known = false
			return ""
		}
		if n == 0 {
			return fmt.Sprintf("%"+verb, value)
		}
		return fmt.Sprintf("%"+zero+strconv.Itoa(n)+verb, value)
	})
	if !known {
		return i.UUID
	}
	return name
}
