package controlplane

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// ports that the control plane listens on, and what for.
var ports = map[int]string{
	3306:  "MariaDB",
	4369:  "Erlang's port mapper",
	5000:  "Keystone",
	5672:  "RabbitMQ",
	6083:  "Nova's serial console proxy",
	6640:  "Open vSwitch's database",
	8774:  "Nova",
	8775:  "Nova's metadata service",
	8778:  "Placement",
	9292:  "Glance",
	9311:  "Barbican",
	9696:  "Neutron",
	11211: "memcached",
	25672: "RabbitMQ's cluster port",
}

// checkPorts finds out before anything is started whether someone else listens where the control plane will.
func (p *Plane) checkPorts() error {
	listening, err := listeners()
	if err != nil {
		return err
	}
	var errs []error
	for port, purpose := range ports {
		inode, busy := listening[port]
		if !busy {
			continue
		}
		pid, name := owner(inode)
		if pid != 0 && p.owns(pid) {
			continue
		}
		who := "a process of another user or namespace"
		if pid != 0 {
			who = fmt.Sprintf("%s, process %d", name, pid)
		}
		errs = append(errs, fmt.Errorf("port %d, which %s needs, is in use by %s", port, purpose, who))
	}
	if len(errs) > 0 {
		errs = append(errs, errors.New("stop what listens there; the ports of the control plane are fixed"))
	}
	return errors.Join(errs...)
}

// listeners maps the TCP ports that something listens on, at any address, to the socket's inode.
func listeners() (map[int]string, error) {
	const listen = "0A"
	found := map[int]string{}
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		text, err := os.ReadFile(table)
		if errors.Is(err, os.ErrNotExist) {
			continue // no IPv6
		}
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(string(text)) {
			fields := strings.Fields(line)
			if len(fields) < 10 || fields[3] != listen {
				continue
			}
			_, hex, _ := strings.Cut(fields[1], ":")
			if port, err := strconv.ParseUint(hex, 16, 16); err == nil {
				found[int(port)] = fields[9]
			}
		}
	}
	return found, nil
}

// owner finds the process that holds a socket; 0 when none can be seen.
func owner(inode string) (pid int, name string) {
	fds, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return 0, ""
	}
	for _, fd := range fds {
		if target, err := os.Readlink(fd); err != nil || target != "socket:["+inode+"]" {
			continue
		}
		pid, err := strconv.Atoi(strings.Split(fd, "/")[2])
		if err != nil {
			return 0, ""
		}
		comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		if err != nil {
			return pid, "a process that just ended"
		}
		return pid, strings.TrimSpace(string(comm))
	}
	return 0, ""
}
