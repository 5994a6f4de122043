package flavor

import (
	"regexp"
	"strings"
)

// poolSpec is the extra spec that names the storage pool of a server's root disk.
const poolSpec = "lxc:pool"

// ImagePool is the image property that names it for flavors that do not.
const ImagePool = "lxc_pool"

// defaultPool is the name by which a flavor or an image asks for the host's default pool.
const defaultPool = "default"

// poolName is lower case, as a resource class is made of it that is upper case. The configuration takes the same names.
var poolName = regexp.MustCompile(`^[a-z][a-z0-9_]{0,31}$`)

// Pool is the storage pool of a server's root disk, "" being the host's default one: its flavor's word, else
// its image's; byImage tells whose it is.
func Pool(specs map[string]string, image string) (name string, byImage bool) {
	name, given := specs[poolSpec]
	if !given {
		name = image
	}
	if name = strings.TrimSpace(name); name == defaultPool {
		name = ""
	}
	return name, !given && name != ""
}

func checkPool(key, value string) error {
	if !poolName.MatchString(strings.TrimSpace(value)) {
		return &InvalidError{Key: key, Value: value, Reason: "must be a pool's name: a lower-case letter, then lower-case letters, digits and _"}
	}
	return nil
}
