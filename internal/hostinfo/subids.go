package hostinfo

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
)

// IDRange is a block of ids: Base … Base+Size-1.
type IDRange struct{ Base, Size uint32 }

// SubordinateIDs returns the ranges that a user may map into user namespaces, both for
// users and for groups: what /etc/subuid and /etc/subgid have in common (subuid(5)).
// None, and no error, when a file is missing or does not name the user.
func SubordinateIDs(user string) ([]IDRange, error) {
	uids, err := subordinate("/etc/subuid", user)
	if err != nil {
		return nil, err
	}
	gids, err := subordinate("/etc/subgid", user)
	if err != nil {
		return nil, err
	}
	var common []IDRange
	for _, u := range uids {
		for _, g := range gids {
			low, high := max(u.Base, g.Base), min(u.Base+(u.Size-1), g.Base+(g.Size-1))
			if low <= high {
				common = append(common, IDRange{Base: low, Size: high - low + 1})
			}
		}
	}
	return common, nil
}

// subordinate reads the user's lines "name:first:count" of one file.
func subordinate(path, user string) ([]IDRange, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read subordinate ids: %w", err)
	}
	defer f.Close() //nolint:errcheck // only read
	var ranges []IDRange
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		parts := strings.Split(strings.TrimSpace(lines.Text()), ":")
		mine := parts[0] == user || user == "root" && parts[0] == "0"
		if !mine {
			continue
		}
		if len(parts) != 3 {
			return nil, fmt.Errorf("read subordinate ids: %s line %d is not of the form name:first:count", path, n)
		}
		base, errBase := strconv.ParseUint(parts[1], 10, 32)
		size, errSize := strconv.ParseUint(parts[2], 10, 32)
		if errBase != nil || errSize != nil || size == 0 || base+size > 1<<32 {
			return nil, fmt.Errorf("read subordinate ids: %s line %d has no valid range", path, n)
		}
		ranges = append(ranges, IDRange{Base: uint32(base), Size: uint32(size)})
	}
	return ranges, lines.Err()
}
