package hostinfo

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// CPU is the content of ComputeNode.cpu_info. The API decodes the JSON form and
// the scheduler's capability filter indexes into it (nova/virt/libvirt/driver.py:_get_cpu_info).
type CPU struct {
	Arch     string   `json:"arch"`
	Model    string   `json:"model"`
	Vendor   string   `json:"vendor"`
	Topology Topology `json:"topology"`
	Features []string `json:"features"`
}

// Topology counts like libvirt: NUMA cells of the host, sockets per cell, cores
// per socket, threads per core.
type Topology struct {
	Cells   int `json:"cells"`
	Sockets int `json:"sockets"`
	Cores   int `json:"cores"`
	Threads int `json:"threads"`
}

// JSON returns the string that goes into ComputeNode.cpu_info.
func (c CPU) JSON() string {
	if c.Features == nil {
		c.Features = []string{}
	}
	data, _ := json.Marshal(c) // strings and numbers only: cannot fail
	return string(data)
}

func (r reader) onlineCPUs() ([]int, error) {
	list, err := r.line("sys/devices/system/cpu/online")
	if err != nil {
		return nil, fmt.Errorf("read online CPUs: %w", err)
	}
	cpus, err := parseCPUList(list)
	if err != nil {
		return nil, fmt.Errorf("read online CPUs: %w", err)
	}
	return cpus, nil
}

// parseCPUList reads the kernel's list form, e.g. "0-3,8,10-11".
func parseCPUList(list string) ([]int, error) {
	var cpus []int
	for part := range strings.SplitSeq(list, ",") {
		from, to, ranged := strings.Cut(strings.TrimSpace(part), "-")
		first, err := strconv.Atoi(from)
		if err != nil {
			return nil, fmt.Errorf("parse CPU list %q: %w", list, err)
		}
		last := first
		if ranged {
			if last, err = strconv.Atoi(to); err != nil {
				return nil, fmt.Errorf("parse CPU list %q: %w", list, err)
			}
		}
		if first < 0 || last < first || last >= maxCPUs {
			return nil, fmt.Errorf("parse CPU list %q: range out of order", list)
		}
		for n := first; n <= last; n++ {
			cpus = append(cpus, n)
		}
	}
	slices.Sort(cpus)
	return slices.Compact(cpus), nil
}

// maxCPUs is above what any kernel is built for (CONFIG_NR_CPUS is at most 8192).
const maxCPUs = 1 << 16

func (r reader) cpu(arch string, online []int) (CPU, error) {
	data, err := r.file("proc/cpuinfo")
	if err != nil {
		return CPU{}, fmt.Errorf("read processor description: %w", err)
	}
	fields := map[string]string{}
	for line := range strings.Lines(string(data)) {
		key, value, ok := strings.Cut(line, ":")
		key = strings.TrimSpace(key)
		if _, seen := fields[key]; ok && !seen { // the first processor speaks for all
			fields[key] = strings.TrimSpace(value)
		}
	}
	first := func(keys ...string) string {
		for _, k := range keys {
			if v := fields[k]; v != "" {
				return v
			}
		}
		return ""
	}
	features := strings.Fields(first("flags", "Features", "features"))
	slices.Sort(features)
	topology, err := r.topology(online)
	if err != nil {
		return CPU{}, err
	}
	return CPU{
		Arch: arch,
		// x86, then s390x and POWER, then Arm, which tells a part number only.
		Model:    first("model name", "cpu", "CPU part"),
		Vendor:   vendorName(first("vendor_id", "CPU implementer")),
		Topology: topology,
		Features: slices.Compact(features),
	}, nil
}

// vendorName gives the vendor as libvirt names it (src/cpu_map/x86_vendors.xml, arm_vendors.xml).
func vendorName(id string) string {
	switch id {
	case "GenuineIntel":
		return "Intel"
	case "AuthenticAMD":
		return "AMD"
	case "HygonGenuine":
		return "Hygon"
	case "0x41":
		return "ARM"
	case "0xc0":
		return "Ampere"
	}
	return id
}

// topology derives the counts from sysfs; a kernel that tells nothing has one
// socket with one core per CPU.
func (r reader) topology(online []int) (Topology, error) {
	cells, err := r.cells()
	if err != nil {
		return Topology{}, err
	}
	type core struct{ socket, id string }
	sockets, cores := map[string]int{}, map[core]int{}
	for _, cpu := range online {
		dir := "sys/devices/system/cpu/cpu" + strconv.Itoa(cpu) + "/topology/"
		socket, err := r.line(dir + "physical_package_id")
		if errors.Is(err, fs.ErrNotExist) {
			return Topology{Cells: cells, Sockets: 1, Cores: len(online), Threads: 1}, nil
		}
		if err != nil {
			return Topology{}, fmt.Errorf("read processor topology: %w", err)
		}
		// Siblings and not core_id, which repeats among the dies of some processors.
		siblings, err := r.line(dir + "thread_siblings_list")
		if err != nil {
			return Topology{}, fmt.Errorf("read processor topology: %w", err)
		}
		c := core{socket, siblings}
		if cores[c] == 0 {
			sockets[socket]++
		}
		cores[c]++
	}
	t := Topology{Cells: cells, Sockets: max(1, len(sockets)/cells), Cores: 1, Threads: 1}
	for _, n := range sockets {
		t.Cores = max(t.Cores, n)
	}
	for _, n := range cores {
		t.Threads = max(t.Threads, n)
	}
	return t, nil
}

// cells counts the NUMA nodes; a kernel without NUMA has one.
func (r reader) cells() (int, error) {
	entries, err := os.ReadDir(filepath.Join(r.root, "sys/devices/system/node"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("read NUMA nodes: %w", err)
	}
	n := 0
	for _, e := range entries {
		number, ok := strings.CutPrefix(e.Name(), "node")
		if _, err := strconv.Atoi(number); ok && err == nil {
			n++
		}
	}
	return max(n, 1), nil
}
