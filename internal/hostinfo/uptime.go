package hostinfo

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
	"time"
)

// uptime renders /proc/uptime, /proc/loadavg and the login records as the uptime
// tool does (procps library/uptime.c:procps_uptime_sprint), e.g.
// " 21:45:12 up 3 days,  2:05,  1 user,  load average: 0.15, 0.28, 0.29".
// Clients take the text apart again (python-openstackclient compute/v2/hypervisor.py).
func (r reader) uptime(arch string) (string, error) {
	line, err := r.line("proc/uptime")
	if err != nil {
		return "", fmt.Errorf("read uptime: %w", err)
	}
	first, _, _ := strings.Cut(line, " ")
	seconds, err := strconv.ParseFloat(first, 64)
	if err != nil {
		return "", fmt.Errorf("read uptime: %w", err)
	}
	load, err := r.line("proc/loadavg")
	if err != nil {
		return "", fmt.Errorf("read load average: %w", err)
	}
	averages := strings.Fields(load)
	if len(averages) < 3 {
		return "", fmt.Errorf("read load average: unknown form %q", load)
	}
	users, err := r.users(arch)
	if err != nil {
		return "", err
	}
	return formatUptime(r.now(), time.Duration(seconds)*time.Second, users, averages[:3]), nil
}

func formatUptime(now time.Time, up time.Duration, users int, averages []string) string {
	var b strings.Builder
	fmt.Fprintf(&b, " %s up ", now.Format("15:04:05"))
	if days := int(up.Hours()) / 24; days == 1 {
		b.WriteString("1 day, ")
	} else if days > 1 {
		fmt.Fprintf(&b, "%d days, ", days)
	}
	hours, minutes := int(up.Hours())%24, int(up.Minutes())%60
	if hours > 0 {
		fmt.Fprintf(&b, "%2d:%02d, ", hours, minutes)
	} else {
		fmt.Fprintf(&b, "%d min, ", minutes)
	}
	unit := "user"
	if users > 1 {
		unit = "users"
	}
	fmt.Fprintf(&b, "%2d %s,  load average: %s", users, unit, strings.Join(averages, ", "))
	return b.String()
}

// The login records of glibc (bits/utmp.h): the fields read here lie at the same
// place everywhere, the record is longer where time_t never had 32 bits.
const (
	utmpUserProcess = 7
	utmpUserOffset  = 44
	utmpSize        = 384 // architectures that also run 32-bit programs
	utmpSizeLong    = 400 // aarch64, riscv64, …
)

// users counts the users who are logged in; hosts without login records have none.
func (r reader) users(arch string) (int, error) {
	data, err := r.file("run/utmp")
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read login records: %w", err)
	}
	size := utmpSizeLong
	switch arch {
	case "x86_64", "i686", "ppc64le", "ppc64", "s390x":
		size = utmpSize
	}
	n := 0
	for ; len(data) >= size; data = data[size:] {
		kind := binary.NativeEndian.Uint16(data)
		if kind == utmpUserProcess && data[utmpUserOffset] != 0 {
			n++
		}
	}
	return n, nil
}
