package object

import (
	"fmt"
	"regexp"
	"strconv"
)

// defaultNameTemplate is [DEFAULT] instance_name_template.
const defaultNameTemplate = "instance-%08x"

// conversion is one Python conversion of a name template: %08x of the id, or %(key)s of
// a column.
var conversion = regexp.MustCompile(`%(?:\((\w+)\))?(0?)(\d*)([dxXs%])`)

// Name computes instance.name, the name on the host, which never travels
// (nova/objects/instance.py:Instance.name): [DEFAULT] instance_name_template ("" is
// "instance-%08x") filled with the id or, in the %(…)s form, with the columns id and uuid. A
// template that names anything else gives the UUID, as one does that Python cannot fill.
func (o *Instance) Name(template string) string {
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
		var value any = o.ID
		switch key {
		case "", "id":
		case "uuid":
			value = o.UUID
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
		return o.UUID
	}
	return name
}
