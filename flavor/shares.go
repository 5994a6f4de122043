package flavor

import (
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"unicode"
)

// shareKey begins the extra specs that give a server directories of its host: lxc:share:NAME=/path/inside.
const shareKey = "lxc:share:"

// Share is a directory of the host that a flavor gives to its servers.
type Share struct {
	Name   string // as the operator of the host calls it
	Target string // where the guest sees it, without the leading slash
}

// shareName is what an operator may call a share; config has the same.
var shareName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$`)

// reservedTargets are what a share may not hide or be below: what liblxc and the agent mount there, and what the
// security of a guest rests on.
var reservedTargets = []string{"proc", "sys", "dev", "config-drive"}

// Shares are the directories of the host that a flavor asks for, by name. The error is an *InvalidError.
func Shares(f Flavor) ([]Share, error) {
	var shares []Share
	for _, key := range slices.Sorted(maps.Keys(f.ExtraSpecs)) {
		name, ok := strings.CutPrefix(key, shareKey)
		if !ok {
			continue
		}
		value := f.ExtraSpecs[key]
		invalid := func(reason string) ([]Share, error) {
			return nil, &InvalidError{Key: key, Value: value, Reason: reason}
		}
		target, absolute := strings.CutPrefix(value, "/")
		switch {
		case !shareName.MatchString(name):
			return invalid("a share's name has up to 32 letters, digits, - and _")
		case !absolute || target == "" || filepath.Clean(value) != value || strings.ContainsFunc(value, isAwkward):
			return invalid("must be an absolute path inside without . and .., blanks, : and \\")
		case slices.ContainsFunc(reservedTargets, func(r string) bool { return nested(r, target) }):
			return invalid("this place is taken in every container")
		case f.EphemeralGB > 0 && (target == "mnt" || strings.HasPrefix(target, "mnt/ephemeral")):
			return invalid("the flavor's ephemeral disk is there")
		}
		for _, other := range shares {
			if nested(other.Target, target) {
				return invalid("share " + other.Name + " is there, or below, or above")
			}
		}
		shares = append(shares, Share{Name: name, Target: target})
	}
	return shares, nil
}

// isAwkward tells of characters that have a meaning in a liblxc configuration, or none in a path.
func isAwkward(r rune) bool {
	return unicode.IsSpace(r) || unicode.IsControl(r) || r == ':' || r == '\\'
}

// nested tells whether two paths are the same, or one is below the other.
func nested(a, b string) bool {
	return strings.HasPrefix(a+"/", b+"/") || strings.HasPrefix(b+"/", a+"/")
}
