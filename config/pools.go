package config

import (
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// storageBackends are how root disks can be made.
var storageBackends = []string{"overlay", "dir", "btrfs"}

// poolName is what a pool may be called: a resource class in upper case is made of it.
var poolName = regexp.MustCompile(`^[a-z][a-z0-9_]{0,31}$`)

// defaultPool is the name by which flavors ask for the pool in instances_dir.
const defaultPool = "default"

// parsePools reads a list of pools.
func parsePools(v string) ([]Pool, error) {
	var pools []Pool
	for _, item := range parseList(v) {
		p, err := parsePool(item)
		if err != nil {
			return nil, err
		}
		pools = append(pools, p)
	}
	return pools, nil
}

// parsePool reads name:back end:directory[:reserved GB]. A directory with a colon could not be used: overlayfs
// separates directories by it.
func parsePool(item string) (Pool, error) {
	parts := strings.Split(item, ":")
	for i := range parts {
		parts[i] = strings.TrimFunc(parts[i], isSpace)
	}
	if len(parts) < 3 || len(parts) > 4 {
		return Pool{}, errors.New("not name:back end:directory[:reserved GB]")
	}
	p := Pool{Name: parts[0], Backend: parts[1], Dir: filepath.Clean(parts[2])}
	switch {
	case !poolName.MatchString(p.Name):
		return Pool{}, errors.New("a pool's name that is not a lower-case letter followed by lower-case letters, digits and _, 32 at most")
	case p.Name == defaultPool:
		return Pool{}, errors.New("a pool called default, which is the name of the one in instances_dir")
	case !slices.Contains(storageBackends, p.Backend):
		return Pool{}, errors.New("a back end that is none of " + strings.Join(storageBackends, ", "))
	case !filepath.IsAbs(parts[2]):
		return Pool{}, errors.New("a pool's directory that is no absolute path")
	}
	if len(parts) == 4 {
		n, err := parseInt(parts[3])
		if err != nil || n < 0 || n > 1<<30 {
			return Pool{}, errors.New("a pool's reserve that is no number of GB")
		}
		p.ReservedGB = int(n)
	}
	return p, nil
}

// checkPools looks at the pools together, and at what else is about them.
func (l *loader) checkPools() {
	x := &l.registry.config.LXC
	names, dirs := map[string]bool{}, map[string]string{filepath.Clean(x.InstancesDir): "instances_dir"}
	for _, p := range x.ExtraPools {
		if names[p.Name] {
			l.faultAt(lxcSection, "extra_pools", "pool "+p.Name+" is given twice", "give each a name of its own")
		}
		if other, taken := dirs[p.Dir]; taken {
			l.faultAt(lxcSection, "extra_pools", fmt.Sprintf("pool %s has the directory of %s", p.Name, other), "give each a directory of its own, on a file system of its own")
		}
		names[p.Name], dirs[p.Dir] = true, "pool "+p.Name
	}
	for _, name := range x.ImagePools {
		if !names[name] {
			l.faultAt(lxcSection, "image_pools", fmt.Sprintf("%q is no pool of extra_pools", name), "name pools of extra_pools alone")
		}
	}
}
