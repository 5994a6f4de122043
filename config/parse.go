package config

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// errNotAllowed is the error for a value outside an option's choices.
var errNotAllowed = errors.New("not one of the allowed values")

// maxSeconds keeps a duration within time.Duration.
const maxSeconds = float64(math.MaxInt64 / 1_000_000_000)

// maxCPU bounds CPU numbers, so that a mistyped range stays small; Linux has at most 8192.
const maxCPU = 1<<16 - 1

func (o *option) checkChoice(v string) error {
	if !o.hasChoice(v) {
		return errNotAllowed
	}
	return nil
}

func (o *option) checkBounds(v float64) error {
	switch {
	case o.minimum != nil && v < *o.minimum:
		return errors.New("too small")
	case o.maximum != nil && v > *o.maximum:
		return errors.New("too large")
	}
	return nil
}

// parseBool knows the words of oslo_config/types.py:Boolean.
func parseBool(v string) (bool, error) {
	switch strings.ToLower(v) {
	case "true", "1", "on", "yes":
		return true, nil
	case "false", "0", "off", "no":
		return false, nil
	}
	return false, errors.New("not a truth value")
}

var (
	pythonInt   = regexp.MustCompile(`^[+-]?[0-9]+(_[0-9]+)*$`)
	pythonFloat = regexp.MustCompile(`^[+-]?([0-9]+(_[0-9]+)*\.?|[0-9]*(_[0-9]+)*\.[0-9]+(_[0-9]+)*)([eE][+-]?[0-9]+(_[0-9]+)*)?$`)
)

// parseInt reads a decimal number as Python's int() does: blanks around it,
// a sign, leading zeros and single underscores are fine.
func parseInt(v string) (int64, error) {
	v = strings.TrimFunc(v, isSpace)
	if !pythonInt.MatchString(v) {
		return 0, errors.New("not a whole number")
	}
	n, err := strconv.ParseInt(strings.ReplaceAll(v, "_", ""), 10, 64)
	if err != nil {
		return 0, errors.New("too large for a number")
	}
	return n, nil
}

// parseSeconds reads a number of seconds that a time.Duration can hold.
func parseSeconds(v string) (int64, error) {
	n, err := parseInt(v)
	if err == nil && math.Abs(float64(n)) > maxSeconds {
		return 0, errors.New("too large for a duration")
	}
	return n, err
}

// parseFloat reads a number as Python's float() does, except that infinity and
// not-a-number are refused.
func parseFloat(v string) (float64, error) {
	v = strings.TrimFunc(v, isSpace)
	if !pythonFloat.MatchString(v) {
		return 0, errors.New("not a number")
	}
	n, err := strconv.ParseFloat(strings.ReplaceAll(v, "_", ""), 64)
	if err != nil {
		return 0, errors.New("too large for a number")
	}
	return n, nil
}

func formatInt(n int64) string { return strconv.FormatInt(n, 10) }

// formatFloat is Python's repr of a float.
func formatFloat(f float64) string {
	if a := math.Abs(f); a != 0 && (a < 1e-4 || a >= 1e16) {
		return strconv.FormatFloat(f, 'e', -1, 64)
	}
	s := strconv.FormatFloat(f, 'f', -1, 64)
	if !strings.Contains(s, ".") {
		s += ".0"
	}
	return s
}

// number prints a bound without a needless decimal point.
func number(f float64) string { return strconv.FormatFloat(f, 'f', -1, 64) }

// parseList splits at commas and strips the items; commas at the end do not
// count (oslo_config/types.py:List with items of type String).
func parseList(v string) []string {
	v = strings.TrimRight(strings.TrimFunc(v, isSpace), ",")
	if v == "" {
		return nil
	}
	items := strings.Split(v, ",")
	for i, item := range items {
		items[i] = strings.TrimFunc(item, isSpace)
	}
	return items
}

// parseDict reads key:value pairs. A piece without a colon belongs to the
// piece after it, comma included (oslo_config/types.py:Dict).
func parseDict(v string) (map[string]string, error) {
	out := map[string]string{}
	v = strings.TrimFunc(v, isSpace)
	if v == "" {
		return out, nil
	}
	pair, pending := "", false
	for piece := range strings.SplitSeq(v, ",") {
		if pending {
			piece = pair + "," + piece
		}
		pair = piece
		key, value, ok := strings.Cut(pair, ":")
		if pending = !ok; pending {
			continue
		}
		key = strings.TrimFunc(key, isSpace)
		if key == "" {
			return nil, errors.New("a pair with an empty key")
		}
		if _, ok := out[key]; ok {
			return nil, errors.New("a key given twice")
		}
		out[key] = strings.TrimFunc(value, isSpace)
	}
	if pending {
		return nil, errors.New("a key without a value")
	}
	return out, nil
}

func checkPath(v string) error {
	if !filepath.IsAbs(v) {
		return errors.New("not an absolute path")
	}
	return nil
}

// checkURI wants a scheme and a host (oslo_config/types.py:URI).
func checkURI(v string) error {
	u, err := url.Parse(v)
	if err != nil || u.Scheme == "" || u.Host == "" {
		return errors.New("not a URI with scheme and host")
	}
	return nil
}

// checkIP accepts IPv4 and IPv6 without a zone (oslo_config/types.py:IPAddress).
func checkIP(v string) error {
	a, err := netip.ParseAddr(v)
	if err != nil || a.Zone() != "" {
		return errors.New("not an IP address")
	}
	return nil
}

var (
	domainLabel = regexp.MustCompile(`^[A-Za-z0-9_-]{1,63}$`)
	nonNumeric  = regexp.MustCompile(`[A-Za-z-]`)
)

// parseHost checks an IP address or a host name, in which _ may stand
// (oslo_config/types.py:HostDomain). The root dot of a name is dropped.
func parseHost(v string) (string, error) {
	if checkIP(v) == nil {
		return v, nil
	}
	host := strings.TrimSuffix(v, ".")
	labels := strings.Split(host, ".")
	bad := v == "" || len(v) > 253 || !nonNumeric.MatchString(labels[len(labels)-1]) ||
		slices.ContainsFunc(labels, func(l string) bool {
			return !domainLabel.MatchString(l) || strings.HasPrefix(l, "-") || strings.HasSuffix(l, "-")
		})
	if bad {
		return "", errors.New("neither a host name nor an IP address")
	}
	return host, nil
}

// parseCPUs reads a CPU set: numbers and ranges to include, with ^ to exclude
// (nova/virt/hardware.py:parse_cpu_spec). A set without CPUs is an error, nothing at all is not.
func parseCPUs(v string) (CPUSet, error) {
	if v == "" {
		return nil, nil
	}
	in, out := map[int]bool{}, map[int]bool{}
	for rule := range strings.SplitSeq(v, ",") {
		rule = strings.TrimFunc(rule, isSpace)
		if rule == "" {
			continue
		}
		target := in
		if rest, ok := strings.CutPrefix(rule, "^"); ok {
			rule, target = rest, out
		}
		first, last, isRange := strings.Cut(rule, "-")
		if !isRange {
			last = first
		}
		from, err1 := parseInt(first)
		to, err2 := parseInt(last)
		if err1 != nil || err2 != nil || from < 0 || to < from || to > maxCPU {
			return nil, errors.New("not a CPU set")
		}
		for n := from; n <= to; n++ {
			target[int(n)] = true
		}
	}
	var set CPUSet
	for n := range in {
		if !out[n] {
			set = append(set, n)
		}
	}
	if set == nil {
		return nil, errors.New("a CPU set without CPUs")
	}
	slices.Sort(set)
	return set, nil
}

func parsePorts(v string) (PortRange, error) {
	first, last, _ := strings.Cut(v, ":")
	from, err1 := strconv.ParseUint(first, 10, 16)
	to, err2 := strconv.ParseUint(last, 10, 16)
	if err1 != nil || err2 != nil || to < from {
		return PortRange{}, errors.New("not a port range")
	}
	return PortRange{First: int(from), Last: int(to)}, nil
}

func parseIDs(v string) (*IDRange, error) {
	if v == "" {
		return nil, nil
	}
	base, count, _ := strings.Cut(v, ":")
	b, err1 := strconv.ParseUint(base, 10, 32)
	n, err2 := strconv.ParseUint(count, 10, 32)
	switch {
	case err1 != nil || err2 != nil || n == 0:
		return nil, errors.New("not an id range")
	case b == 0:
		return nil, errors.New("a range that holds the host's root")
	case b+n > 1<<32-1:
		return nil, errors.New("beyond the last id")
	}
	return &IDRange{Base: uint32(b), Size: uint32(n)}, nil
}

// shareForm is NAME:/directory or NAME:/directory:ro. The flavor package has the same form of the name.
var shareForm = regexp.MustCompile(`^([A-Za-z0-9][A-Za-z0-9_-]{0,31}):(/[^:]*?)(:ro)?$`)

// unshared are directories of the kernel, whose files no server is to have.
var unshared = []string{"/proc", "/sys", "/dev"}

func parseShares(v string) ([]Share, error) {
	var shares []Share
	for _, item := range parseList(v) {
		m := shareForm.FindStringSubmatch(item)
		if m == nil {
			return nil, fmt.Errorf("%q is not NAME:/directory or NAME:/directory:ro", item)
		}
		share := Share{Name: m[1], Path: filepath.Clean(m[2]), ReadOnly: m[3] != ""}
		if share.Path == "/" || slices.ContainsFunc(unshared, func(d string) bool { return nested(d, share.Path) }) {
			return nil, fmt.Errorf("%s must not be given to servers", share.Path)
		}
		if slices.ContainsFunc(shares, func(s Share) bool { return s.Name == share.Name }) {
			return nil, fmt.Errorf("%s is there twice", share.Name)
		}
		shares = append(shares, share)
	}
	return shares, nil
}

// nested tells whether two clean paths are the same, or one is below the other.
func nested(a, b string) bool {
	return strings.HasPrefix(a+"/", b+"/") || strings.HasPrefix(b+"/", a+"/")
}
