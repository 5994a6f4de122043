package controlplane

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Down ends the control plane and undoes what it did to the host. What is below the base directory stays, so that the next Up is
// quick. It can be called again, and after an Up that failed.
func (p *Plane) Down(ctx context.Context) error {
	p.Say("stopping the control plane")
	var firewall error
	if p.mark("up") != "" && p.mark("packages") != "" {
		agents, err := p.l2Services()
		agents = append(agents, "peer", "peer-l2", "neutron-l2-agent", "neutron-l3-agent", "neutron-dhcp-agent", "neutron-metadata-agent")
		// The agents go first, so that none puts back what is taken away.
		firewall = errors.Join(err, p.stopServices(ctx, 5*time.Second, agents...), p.cleanFirewall(ctx))
	}
	files, err := filepath.Glob(p.pidFile("*"))
	if err != nil {
		return err
	}
	var names, stores []string
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".pid")
		if slices.Contains([]string{"mariadb", "rabbitmq", "epmd", "ovsdb-server"}, name) {
			stores = append(stores, name)
		} else {
			names = append(names, name)
		}
	}
	return errors.Join(
		firewall,
		p.stopServices(ctx, 3*time.Second, names...),
		p.stopServices(ctx, time.Minute, stores...), // which write what they have in memory, for the next Up
		p.killAll(ctx),
		p.restoreHost(ctx),
		p.unmount(),
		p.unmountNetns(),
		os.RemoveAll(p.path("run")),
		p.forgetHosts(),
		os.RemoveAll(p.path("marks", "up")),
	)
}

// Remove deletes the base directory, after Down.
func (p *Plane) Remove() error {
	points, err := mountPoints()
	if err != nil {
		return err
	}
	for _, point := range points {
		if strings.HasPrefix(point, p.Base+"/") {
			return fmt.Errorf("remove %s: something is mounted at %s", p.Base, point)
		}
	}
	return os.RemoveAll(p.Base)
}

// hostRecord is what Up finds on the host and Down is to leave.
type hostRecord struct {
	Links  []string          // names of network links
	Netns  []string          // names of network namespaces
	Tables []string          // of the packet filter, such as "ip filter"
	Sysctl map[string]string // settings that neutron's agents change, by their file
}

// changedSettings are kernel settings that the L2 agent changes. Not every kernel has them.
var changedSettings = []string{
	"/proc/sys/net/bridge/bridge-nf-call-arptables",
	"/proc/sys/net/bridge/bridge-nf-call-ip6tables",
	"/proc/sys/net/bridge/bridge-nf-call-iptables",
}

// ownLinks are the names of links that the control plane and an agent's servers make.
var ownLinks = regexp.MustCompile(`^(brq[0-9a-f-]{11}|(tap|qbr|qvo|qvb)[0-9a-f-]{11}|br-int(-\w+)?|br-phys|br-phy-\w+|ovs-netdev|labphys[01]|(int|phy)-br-phy.*)$`)

// ownNetns are the names of network namespaces that neutron's agents make, for DHCP servers and routers.
var ownNetns = regexp.MustCompile(`^q(dhcp|router)-`)

func (p *Plane) observeHost(ctx context.Context) (hostRecord, error) {
	record := hostRecord{Tables: p.tables(ctx), Sysctl: map[string]string{}}
	links, err := net.Interfaces()
	if err != nil {
		return record, err
	}
	for _, link := range links {
		record.Links = append(record.Links, link.Name)
	}
	names, err := os.ReadDir("/run/netns")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return record, err
	}
	for _, name := range names {
		record.Netns = append(record.Netns, name.Name())
	}
	for _, file := range changedSettings {
		if value, err := os.ReadFile(file); err == nil {
			record.Sysctl[file] = strings.TrimSpace(string(value))
		}
	}
	return record, nil
}

// recordHost keeps what the host was like before the control plane came up.
func (p *Plane) recordHost(ctx context.Context) error {
	return p.once("host", func() error {
		record, err := p.observeHost(ctx)
		if err != nil {
			return err
		}
		text, err := json.Marshal(record)
		if err != nil {
			return err
		}
		return os.WriteFile(p.path("host.json"), text, 0o600)
	})
}

// restoreHost takes away the namespaces and links that came since, and puts kernel settings back.
func (p *Plane) restoreHost(ctx context.Context) error {
	if p.mark("host") == "" {
		return nil
	}
	text, err := os.ReadFile(p.path("host.json"))
	if err != nil {
		return err
	}
	var before hostRecord
	if err := json.Unmarshal(text, &before); err != nil {
		return fmt.Errorf("read record of the host: %w", err)
	}
	now, err := p.observeHost(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range now.Netns {
		if ownNetns.MatchString(name) && !slices.Contains(before.Netns, name) {
			_, err := host(ctx, "ip", "netns", "delete", name)
			errs = append(errs, err)
		}
	}
	for _, name := range now.Links {
		if !ownLinks.MatchString(name) || slices.Contains(before.Links, name) {
			continue
		}
		// The other end of a pair goes with the first, and one whose other end was in a namespace at any moment after that.
		if _, err := host(ctx, "ip", "link", "delete", name); err != nil {
			if _, gone := net.InterfaceByName(name); gone == nil {
				errs = append(errs, err)
			}
		}
	}
	for _, table := range now.Tables {
		if !slices.Contains(before.Tables, table) {
			errs = append(errs, p.removeTable(ctx, table))
		}
	}
	for file, value := range before.Sysctl {
		if now.Sysctl[file] != value {
			errs = append(errs, os.WriteFile(file, []byte(value), 0o644))
		}
	}
	return errors.Join(append(errs, os.RemoveAll(p.path("marks", "host")))...)
}

// addPhysicalLink makes the link that stands for the provider's network.
func (p *Plane) addPhysicalLink(ctx context.Context) error {
	if _, err := net.InterfaceByName(physicalLink); err != nil {
		if _, err := host(ctx, "ip", "link", "add", physicalLink, "type", "dummy"); err != nil {
			// A kernel without dummy links has pairs.
			if _, err := host(ctx, "ip", "link", "add", physicalLink, "type", "veth", "peer", "name", "labphys1"); err != nil {
				return err
			}
			if _, err := host(ctx, "ip", "link", "set", "labphys1", "up"); err != nil {
				return err
			}
		}
	}
	_, err := host(ctx, "ip", "link", "set", physicalLink, "up")
	return err
}

// unmountNetns undoes mountNetns, if it was this that made /run/netns a mount point.
func (p *Plane) unmountNetns() error {
	if p.mark("netns") == "" {
		return nil
	}
	if err := unix.Unmount("/run/netns", 0); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("unmount /run/netns: %w", err)
	}
	_ = os.Remove("/run/netns") // not empty: somebody uses it
	return os.RemoveAll(p.path("marks", "netns"))
}
