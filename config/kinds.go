package config

import (
	"strconv"
	"time"
)

// Kinds in words, as the documentation prints them.
const (
	kindString   = "text"
	kindInteger  = "whole number"
	kindFloat    = "number"
	kindBoolean  = "true or false (also 1/0, yes/no, on/off)"
	kindSeconds  = "seconds, a whole number"
	kindFraction = "seconds"
	kindList     = "list, separated by commas"
	kindMulti    = "text, may be repeated"
	kindDicts    = "key:value pairs separated by commas, may be repeated"
	kindPath     = "absolute path"
	kindURI      = "URI"
	kindHost     = "host name or IP address"
	kindIP       = "IP address"
	kindCPUs     = "CPU set such as 1-4,^3,6"
	kindPorts    = "port range first:last"
	kindIDs      = "id range base:count"
	kindListen   = "host:port"
	kindPools    = "list of name:back end:directory[:reserved GB], separated by commas"
	kindShares   = "list of NAME:/directory or NAME:/directory:ro"
	kindBytes    = "bytes, a whole number"
)

// bind declares an option whose field takes the result of parse.
func bind[T any](s *section, field *T, opt, kind, def, help string, parse func(*option, string) (T, error)) *option {
	o := &option{name: name{s.name, opt}, kind: kind, def: def, help: help, field: field}
	o.set = func(values []string) error {
		v, err := parse(o, values[len(values)-1])
		if err == nil {
			*field = v
		}
		return err
	}
	o.reset = func() {
		var zero T
		*field = zero
	}
	o.format = func(v string) string { return v }
	return s.add(o)
}

// text declares a string option. An empty default is "unset".
func (s *section) text(field *string, opt, def, help string) *option {
	return bind(s, field, opt, kindString, def, help, func(o *option, v string) (string, error) {
		return v, o.checkChoice(v)
	})
}

// enum declares a string option with choices, as written.
func (s *section) enum(field *string, opt, def, help string, choices ...string) *option {
	return s.text(field, opt, def, help).oneOf(choices...)
}

// pattern declares a string option whose value must satisfy ok; kind says how it looks.
func (s *section) pattern(field *string, opt, kind, def, help string, check func(string) error) *option {
	return bind(s, field, opt, kind, def, help, func(_ *option, v string) (string, error) {
		return v, check(v)
	})
}

// path declares an option for an absolute path; it may be empty if its default is.
func (s *section) path(field *string, opt, def, help string) *option {
	return s.pattern(field, opt, kindPath, def, help, func(v string) error {
		if v == "" && def == "" {
			return nil
		}
		return checkPath(v)
	})
}

// ip declares an option for an IP address.
func (s *section) ip(field *string, opt, def, help string) *option {
	return s.pattern(field, opt, kindIP, def, help, checkIP)
}

// host declares an option for a host name, in which _ is allowed, or an IP address.
func (s *section) host(field *string, opt, def, help string) *option {
	o := bind(s, field, opt, kindHost, def, help, func(_ *option, v string) (string, error) { return parseHost(v) })
	o.format = func(v string) string {
		if h, err := parseHost(v); err == nil {
			return h
		}
		return v
	}
	return o
}

// cpus declares a CPU set.
func (s *section) cpus(field *CPUSet, opt, help string) *option {
	return bind(s, field, opt, kindCPUs, "", help, func(_ *option, v string) (CPUSet, error) { return parseCPUs(v) })
}

// uri declares an option for an absolute URI.
func (s *section) uri(field *string, opt, def, help string) *option {
	return s.pattern(field, opt, kindURI, def, help, checkURI)
}

// secretText declares a string option that must never be shown.
func (s *section) secretText(field *Secret, opt, def, help string) *option {
	o := bind(s, field, opt, kindString, def, help, func(_ *option, v string) (Secret, error) { return Secret(v), nil })
	o.secret = true
	return o
}

// boolean declares a truth value in oslo.config's words.
func (s *section) boolean(field *bool, opt string, def bool, help string) *option {
	o := bind(s, field, opt, kindBoolean, strconv.FormatBool(def), help, func(_ *option, v string) (bool, error) {
		return parseBool(v)
	})
	o.format = func(v string) string {
		if b, err := parseBool(v); err == nil && b {
			return "True"
		}
		return "False"
	}
	return o
}

// numeric declares a number with bounds; convert stores it as the field's type.
func numeric[N int64 | float64, T any](s *section, field *T, opt, kind, def, help string, parse func(string) (N, error), format func(N) string, convert func(N) T) *option {
	o := bind(s, field, opt, kind, def, help, func(o *option, v string) (T, error) {
		n, err := parse(v)
		if err == nil {
			err = o.checkBounds(float64(n))
		}
		return convert(n), err
	})
	o.number = true
	o.format = func(v string) string {
		n, err := parse(v)
		if err != nil {
			return v
		}
		return format(n)
	}
	return o
}

// integer declares an int.
func (s *section) integer(field *int, opt string, def int, help string) *option {
	return numeric(s, field, opt, kindInteger, strconv.Itoa(def), help, parseInt, formatInt, func(n int64) int { return int(n) })
}

// bytes declares a size in bytes.
func (s *section) bytes(field *int64, opt string, def int64, help string) *option {
	return numeric(s, field, opt, kindBytes, formatInt(def), help, parseInt, formatInt, func(n int64) int64 { return n })
}

// uint32 declares an unsigned number of 32 bits.
func (s *section) uint32(field *uint32, opt string, def uint32, help string) *option {
	return numeric(s, field, opt, kindInteger, formatInt(int64(def)), help, parseInt, formatInt,
		func(n int64) uint32 { return uint32(n) }).atLeast(0).atMost(1<<32 - 1) // #nosec G115 -- within the bounds
}

// float declares a number with decimals.
func (s *section) float(field *float64, opt string, def float64, help string) *option {
	return numeric(s, field, opt, kindFloat, formatFloat(def), help, parseFloat, formatFloat, func(n float64) float64 { return n })
}

// ratio declares an allocation ratio: its field is nil when it is unset or 0.0 (nova/conf/compute.py).
func (s *section) ratio(field **float64, opt, help string) *option {
	return numeric(s, field, opt, kindFloat, "", help, parseFloat, formatFloat, func(n float64) *float64 {
		if n == 0 {
			return nil
		}
		return &n
	}).atLeast(0)
}

// seconds declares a duration in whole seconds; negative values keep their sign.
func (s *section) seconds(field *time.Duration, opt string, def int, help string) *option {
	return numeric(s, field, opt, kindSeconds, strconv.Itoa(def), help, parseSeconds, formatInt, wholeSeconds)
}

// optionalSeconds declares a duration in whole seconds whose field is nil when it is unset.
func (s *section) optionalSeconds(field **time.Duration, opt, help string) *option {
	return numeric(s, field, opt, kindSeconds, "", help, parseSeconds, formatInt, func(n int64) *time.Duration {
		d := wholeSeconds(n)
		return &d
	})
}

// fraction declares a duration in seconds with decimals; def "" is unset, and then 0.
func (s *section) fraction(field *time.Duration, opt, def, help string) *option {
	return numeric(s, field, opt, kindFraction, def, help, parseFloat, formatFloat, func(n float64) time.Duration {
		return time.Duration(n * float64(time.Second))
	}).atMost(maxSeconds)
}

// list declares a list of strings; choices, if any, hold for each item.
func (s *section) list(field *[]string, opt, def, help string) *option {
	return bind(s, field, opt, kindList, def, help, func(o *option, v string) ([]string, error) {
		items := parseList(v)
		for _, item := range items {
			if err := o.checkChoice(item); err != nil {
				return nil, err
			}
		}
		return items, nil
	})
}

// integers declares a list of whole numbers.
func (s *section) integers(field *[]int, opt, def, help string) *option {
	return bind(s, field, opt, kindList, def, help, func(o *option, v string) ([]int, error) {
		var out []int
		for _, item := range parseList(v) {
			n, err := parseInt(item)
			if err == nil {
				err = o.checkBounds(float64(n))
			}
			if err != nil {
				return nil, err
			}
			out = append(out, int(n))
		}
		return out, nil
	})
}

// texts declares a repeatable string option.
func (s *section) texts(field *[]string, opt, help string) *option {
	return multi(s, field, opt, kindMulti, help, func(v string) (string, error) { return v, nil })
}

// dicts declares a repeatable option of key:value pairs.
func (s *section) dicts(field *[]map[string]string, opt, help string) *option {
	return multi(s, field, opt, kindDicts, help, parseDict)
}

func multi[T any](s *section, field *[]T, opt, kind, help string, parse func(string) (T, error)) *option {
	o := &option{name: name{s.name, opt}, kind: kind, help: help, field: field, multi: true}
	o.set = func(values []string) error {
		var out []T
		for _, value := range values {
			v, err := parse(value)
			if err != nil {
				return err
			}
			out = append(out, v)
		}
		*field = out
		return nil
	}
	o.reset = func() { *field = nil }
	o.format = func(v string) string { return v }
	return s.add(o)
}

func wholeSeconds(n int64) time.Duration { return time.Duration(n) * time.Second }
