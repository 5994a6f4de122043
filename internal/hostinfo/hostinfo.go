// Package hostinfo reads what the agent reports about its host: processors,
// memory, addresses, the kernel and its control groups. Nothing is executed and
// nothing is changed.
package hostinfo

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Layout says which control group hierarchies the host has mounted.
type Layout string

// Layouts as systemd names them: legacy, hybrid and unified.
const (
	CgroupV1     Layout = "v1"
	CgroupHybrid Layout = "hybrid"
	CgroupV2     Layout = "v2"
	CgroupNone   Layout = "none"
)

// Info describes the host at one moment.
type Info struct {
	Hostname   string     // kernel host name, not made a FQDN
	Kernel     string     // release, e.g. "6.1.0-25-amd64"
	Arch       string     // Nova's canonical name, e.g. "x86_64", "aarch64"
	OnlineCPUs []int      // numbers of the CPUs that are online, ascending
	CPUs       int        // how many those are
	MemoryMB   int        // MemTotal in MiB
	CPU        CPU        // what cpu_info is made of
	Uptime     string     // as the uptime tool prints it, without a newline
	BootTime   time.Time  // whole seconds
	DefaultIP  netip.Addr // IPv4 source address towards the world; 127.0.0.1 if there is no route
	Cgroups    Layout     //
	LSMs       []string   // active security modules, e.g. "capability", "apparmor"
}

// Read describes the running host. Only a host without /proc or with an unreadable
// one is an error; what a kernel may lack (LSM list, CPU topology) stays empty.
func Read(ctx context.Context) (Info, error) {
	return reader{root: "/", uname: uname, source: sourceAddress, now: time.Now}.read(ctx)
}

// reader reads below root, so that tests can hand in a tree of another machine.
type reader struct {
	root   string
	uname  func() (machine string, err error)
	source func(ctx context.Context) (netip.Addr, error)
	now    func() time.Time
}

func (r reader) read(ctx context.Context) (Info, error) {
	machine, err := r.uname()
	if err != nil {
		return Info{}, err
	}
	info := Info{Arch: canonicalArch(machine)}
	if info.Hostname, err = r.line("proc/sys/kernel/hostname"); err != nil {
		return Info{}, fmt.Errorf("read host name: %w", err)
	}
	if info.Kernel, err = r.line("proc/sys/kernel/osrelease"); err != nil {
		return Info{}, fmt.Errorf("read kernel release: %w", err)
	}
	if info.MemoryMB, err = r.memoryMB(); err != nil {
		return Info{}, err
	}
	if info.OnlineCPUs, err = r.onlineCPUs(); err != nil {
		return Info{}, err
	}
	info.CPUs = len(info.OnlineCPUs)
	if info.CPU, err = r.cpu(info.Arch, info.OnlineCPUs); err != nil {
		return Info{}, err
	}
	if info.BootTime, err = r.bootTime(); err != nil {
		return Info{}, err
	}
	if info.Uptime, err = r.uptime(info.Arch); err != nil {
		return Info{}, err
	}
	if info.Cgroups, err = r.cgroups(); err != nil {
		return Info{}, err
	}
	if info.LSMs, err = r.lsms(); err != nil {
		return Info{}, err
	}
	info.DefaultIP, err = r.source(ctx)
	return info, err
}

// memoryMB reads MemTotal.
func (r reader) memoryMB() (int, error) {
	data, err := r.file("proc/meminfo")
	if err != nil {
		return 0, fmt.Errorf("read memory size: %w", err)
	}
	for line := range strings.Lines(string(data)) {
		rest, ok := strings.CutPrefix(line, "MemTotal:")
		if !ok {
			continue
		}
		kib, err := strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")))
		if err != nil {
			return 0, fmt.Errorf("read memory size: %w", err)
		}
		return kib / 1024, nil
	}
	return 0, errors.New("read memory size: no MemTotal in /proc/meminfo")
}

func (r reader) bootTime() (time.Time, error) {
	data, err := r.file("proc/stat")
	if err != nil {
		return time.Time{}, fmt.Errorf("read boot time: %w", err)
	}
	for line := range strings.Lines(string(data)) {
		rest, ok := strings.CutPrefix(line, "btime ")
		if !ok {
			continue
		}
		sec, err := strconv.ParseInt(strings.TrimSpace(rest), 10, 64)
		if err != nil {
			return time.Time{}, fmt.Errorf("read boot time: %w", err)
		}
		return time.Unix(sec, 0), nil
	}
	return time.Time{}, errors.New("read boot time: no btime in /proc/stat")
}

// cgroups looks at what is mounted at or below /sys/fs/cgroup, where systemd and
// everybody after it mounts control groups.
func (r reader) cgroups() (Layout, error) {
	data, err := r.file("proc/self/mounts")
	if err != nil {
		return "", fmt.Errorf("read mounts: %w", err)
	}
	const base = "/sys/fs/cgroup"
	var v1, v2 bool
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) < 3 || (fields[1] != base && !strings.HasPrefix(fields[1], base+"/")) {
			continue
		}
		switch fields[2] {
		case "cgroup":
			v1 = true
		case "cgroup2":
			if fields[1] == base {
				return CgroupV2, nil
			}
			v2 = true
		}
	}
	switch {
	case v1 && v2:
		return CgroupHybrid, nil
	case v1:
		return CgroupV1, nil
	case v2:
		return CgroupV2, nil
	}
	return CgroupNone, nil
}

// lsms reads the list of active security modules; securityfs need not be mounted.
func (r reader) lsms() ([]string, error) {
	list, err := r.line("sys/kernel/security/lsm")
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("read security modules: %w", err)
	case list == "":
		return nil, nil
	}
	return strings.Split(list, ","), nil
}

func (r reader) file(name string) ([]byte, error) {
	return os.ReadFile(filepath.Join(r.root, name))
}

// line returns the first line of a file, stripped.
func (r reader) line(name string) (string, error) {
	data, err := r.file(name)
	if err != nil {
		return "", err
	}
	s := bufio.NewScanner(bytes.NewReader(data))
	s.Scan()
	return strings.TrimSpace(s.Text()), s.Err()
}

// uname returns the machine that the kernel runs on.
func uname() (string, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", fmt.Errorf("read machine type: %w", err)
	}
	return unix.ByteSliceToString(u.Machine[:]), nil
}

// canonicalArch gives Nova's name of an architecture (nova/objects/fields.py:Architecture.canonicalize).
func canonicalArch(machine string) string {
	machine = strings.ToLower(machine)
	switch machine {
	case "amd64", "x64":
		return "x86_64"
	case "i386", "i486", "i586":
		return "i686"
	}
	return machine
}

// sourceAddress asks the kernel which IPv4 address it would send from towards a
// host on the internet, as Nova does for my_ip (oslo.utils netutils.get_my_ipv4).
// Connecting a datagram socket sends nothing.
func sourceAddress(ctx context.Context) (netip.Addr, error) {
	loopback := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	conn, err := (&net.Dialer{}).DialContext(ctx, "udp4", "8.8.8.8:80")
	if err != nil {
		if ctx.Err() != nil {
			return netip.Addr{}, fmt.Errorf("find own address: %w", ctx.Err())
		}
		return loopback, nil // no route: Nova's fallback
	}
	defer conn.Close() //nolint:errcheck // nothing was written
	local, ok := conn.LocalAddr().(*net.UDPAddr)
	if !ok {
		return loopback, nil
	}
	return local.AddrPort().Addr().Unmap(), nil
}
